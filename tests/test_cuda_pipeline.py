"""The whole runtime on a simulated GPU that runs its streams as late, and in as bad an order, as
CUDA allows."""

import threading
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.reported_streams import (
    ANY_SIZE,
    ASK,
    BY_HEAD,
    SHARED,
    SHORT,
    SPILLING,
    small,
    told,
    told_of_sizes,
    watch,
)
from support.simulated_cuda import Misuse, ObservedStream, Race, SimulatedEngineSet
from support.simulated_tensorrt import SimulatedTensorRTSet
from support.sizes import slow
from support.streams import frames
from support.systems import system

from vicort.runtime.core import ChunkEvent
from vicort.runtime.devices.cuda import CudaDevice, CudaStream
from vicort.runtime.devices.cuda.streams import CallbackThread
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.engines.tensorrt import StreamContexts, TensorRTEngine
from vicort.runtime.errors import DeviceError
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session


@pytest.fixture(scope="module")
def on_the_host():
    """What the host says of a system, worked out once."""
    known = {}

    def tell(name):
        if name not in known:
            known[name] = told(FakeEngineSet(), name)
        return known[name]

    return tell


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *((name, 0) for name in ["spilling", *SHARED]),
        *((name, 1) for name in ["spilling", "vicostream", "codecflow"]),
    ],
)
def test_every_system_says_on_the_gpu_what_it_says_on_the_host_to_the_last_bit(
    name, order, on_the_host
):
    engines = SimulatedEngineSet(order=order, lag=0.002 * order)
    assert told(engines, name) == on_the_host(name)
    assert engines.driver.counts["replay"] > engines.driver.counts["capture"] > 0


@pytest.mark.parametrize("name", ["spilling", "vicostream", "simplestream"])
def test_int8_pages_on_the_gpu_are_those_of_the_host_to_the_last_bit(name):
    host = told(FakeEngineSet(kv="int8"), name)
    assert told(SimulatedEngineSet(kv="int8", order=1, lag=0.002), name) == host


@pytest.mark.slow
@pytest.mark.parametrize("order", range(1, 30))
@pytest.mark.parametrize("name", ["spilling", *SHARED])
def test_every_system_says_the_same_in_many_more_orders(name, order, on_the_host):
    assert told(SimulatedEngineSet(order=order, lag=0.002 * (order % 3)), name) == on_the_host(name)


@pytest.mark.parametrize("name", ["spilling", "simplestream"])
def test_the_sequential_twin_says_the_same_on_one_cuda_stream(name, on_the_host):
    engines = SimulatedEngineSet()
    assert told(engines, name, overlap=False) == on_the_host(name)
    assert (
        len({stream for _, stream in engines.driver.log if _ in ("vision", "tokens", "llm")}) == 1
    )


@pytest.mark.parametrize("order", range(2))
@pytest.mark.parametrize("name", ["spilling", "simplestream"])
def test_the_real_tensorrt_engines_say_the_same(name, order, on_the_host):
    """With their contexts, the memory of these, and CUDA graphs, over plans that are stand-ins."""
    engines = SimulatedTensorRTSet(order=order)
    assert told(engines, name) == on_the_host(name)
    assert engines.driver.counts["replay"] > engines.driver.counts["capture"] > 0


@pytest.fixture(scope="module")
def sizes_on_the_host():
    return told_of_sizes(FakeEngineSet(**ANY_SIZE))


@pytest.mark.parametrize(
    ("engine_set", "kept", "order"),
    [
        *((SimulatedEngineSet, 8, order) for order in (0, 1)),
        *((SimulatedEngineSet, 1, order) for order in (0, 2)),
        *((SimulatedTensorRTSet, kept, 1) for kept in (8, 1)),
        *slow((SimulatedEngineSet, 8, 2), (SimulatedEngineSet, 1, 1)),
        *slow(*((SimulatedTensorRTSet, kept, order) for kept in (8, 1) for order in (0, 2))),
    ],
)
def test_frames_of_any_size_say_on_the_gpu_what_they_say_on_the_host(
    engine_set, kept, order, sizes_on_the_host, monkeypatch
):
    """Also where the index arrays of a grid make room for those of the next one."""
    monkeypatch.setattr("vicort.runtime.stages.grid_inputs.MAX_GRIDS", kept)
    overlapped = told_of_sizes(engine_set(order=order, lag=0.002 * order, **ANY_SIZE))
    assert overlapped == sizes_on_the_host
    sequential = told_of_sizes(engine_set(order=order, **ANY_SIZE), overlap=False)
    assert sequential == sizes_on_the_host


def test_old_pages_were_moved_to_the_host_tier_and_read_again(on_the_host):
    """So that the comparison above means something."""
    said, _, pages = on_the_host("spilling")
    assert pages["host"]
    assert any(read[0][0] == 0 for _, _, read, _, _ in said.values() if read)


def test_time_is_rebased_on_the_gpu_as_on_the_host():
    def run(engines):
        picture = frames(1)[0]
        video = [
            type(picture)(np.full((8, 8, 3), i % 251, np.uint8), Fraction(i, 2), i)
            for i in range(600)
        ]
        chosen = system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}")
        return watch(engines, chosen, video, (60, 150, None), asks=(299,))

    small_range = {"max_position": 200, "layers": 1}
    assert run(SimulatedEngineSet(**small_range)) == run(FakeEngineSet(**small_range))


# ---- the stand-in sees what it is for ----


def incurious(engines):
    """Nobody sees by asking that work is done, as who looks at stage times may: what comes after
    that would rightly be no race."""
    engines.driver.is_done = lambda event: False
    return engines


@pytest.mark.parametrize("order", [0, *slow(1)])
@pytest.mark.parametrize("victim", ["vision", "tokens", "question"])
def test_work_that_does_not_wait_for_the_work_before_it_is_found(victim, order, monkeypatch):
    """Prefill is not among them: it comes behind the count that the host reads, and so behind all
    of `tokens`."""
    wait, tell = ObservedStream.wait, CallbackThread._call_back

    def without(self, event, *, first=False):
        if self.name == victim:
            event.enqueued()  # the host's half of it alone
        else:
            wait(self, event, first=first)

    def late(self, notice):
        time.sleep(0.4)  # or the host has seen the end of a chunk before the question comes
        tell(self, notice)

    monkeypatch.setattr(ObservedStream, "wait", without)
    monkeypatch.setattr(CallbackThread, "_call_back", late)
    with pytest.raises(Race, match=r"no event between them|may still read"):
        watch(
            incurious(SimulatedEngineSet(order=order)), small("vicostream"), frames(24), (3, 7, 11)
        )


def test_context_memory_that_two_streams_share_is_found(monkeypatch):
    blocks = {}

    def shared(lane, context):
        block = blocks.setdefault(id(lane._engine), lane._stream.device.empty((1 << 20,), np.uint8))
        context.set_device_memory(block.pointer, block.nbytes)

    monkeypatch.setattr(StreamContexts, "_give_memory", shared)
    with pytest.raises(Race):
        watch(
            incurious(SimulatedTensorRTSet(lag=0.01)),
            small("vicostream"),
            frames(160),
            range(2, 60),
        )


def test_a_context_whose_graph_would_still_be_replayed_is_not_used_for_other_shapes(monkeypatch):
    monkeypatch.setattr(
        TensorRTEngine,
        "new_context",
        lambda engine, make=TensorRTEngine.new_context: _the_one(engine, make),
    )
    with pytest.raises(Misuse, match="context of a CUDA graph was changed"):
        told(SimulatedTensorRTSet(), "vicostream", overlap=False)


def _the_one(engine, make):
    if not hasattr(engine, "the_one"):
        engine.the_one = make(engine)
    return engine.the_one


def test_a_read_that_does_not_wait_is_found(monkeypatch, on_the_host):
    monkeypatch.setattr(CudaStream, "finish", lambda self: None)
    try:
        said = told(SimulatedEngineSet(), "vicostream")
    except Exception:  # noqa: BLE001 - poison is no number of rows
        return
    assert said != on_the_host("vicostream")


def test_a_chunks_buffers_that_are_given_back_too_early_are_found(monkeypatch):
    """They may go to the next chunk only once the device is done with this one: what `notify` is
    for."""
    monkeypatch.setattr(CudaStream, "notify", lambda self, work, *args, failed=None: work(*args))
    with pytest.raises(Race):
        watch(incurious(SimulatedEngineSet()), small("vicostream"), frames(80))


# ---- what a steady stream costs ----


@pytest.mark.parametrize("name", ["spilling", "vicostream", "uniform", "simplestream"])
def test_a_steady_stream_allocates_nothing_and_waits_once_a_chunk_and_once_a_token(name):
    engines = SimulatedEngineSet()
    driver, chosen = engines.driver, SPILLING if name == "spilling" else small(name)
    warm, chunks, asked = 10, 10, 0
    with Session(engines, chosen, sampling=SHORT) as session:
        for number, frame in enumerate(frames(8 * (warm + chunks))):
            if number == 8 * warm:
                session.inspect().pipeline.drain()
                before, waits = Counter(driver.counts), len(driver.waits)
            session.push(frame)
            if number % 40 == 39:  # no chunk is being filled: it would be cut
                session.ask(ASK)
                asked += number > 8 * warm
        session.inspect().pipeline.drain()
        after, waited = (
            Counter(driver.counts),
            Counter(name.rpartition("_")[0] or name for name in driver.waits[waits:]),
        )
    assert {what: after[what] - before[what] for what in ("allocate", "allocate_pinned")} == {
        "allocate": 0,
        "allocate_pinned": 0,
    }
    assert not {"preprocess", "vision", "prefill"} & set(waited)
    assert waited["tokens"] == chunks
    # for the logits of its text, and of each token but the last, after which none is chosen
    assert waited["question"] == asked * SHORT.max_tokens


def test_urgent_work_needs_no_gate_on_the_host():
    device = SimulatedEngineSet().new_device()
    assert isinstance(device, CudaDevice)
    with device.urgency.urgent_work():
        device.urgency.wait_for_urgent_work()  # returns: the GPU itself puts urgent streams first
    assert isinstance(device.urgency, Urgency)
    device.close()


# ---- a GPU that breaks ----


@pytest.mark.parametrize("graph", ["vision", "tokens", "llm"])
def test_a_device_that_breaks_ends_the_stream_with_its_error(graph):
    engines = SimulatedEngineSet()
    engine, seen = getattr(engines, graph), []
    function = engine.function

    def breaks(**bindings):
        seen.append(graph)
        if len(seen) == 4:
            raise DeviceError("CUDA failed (CUDA_ERROR_ILLEGAL_ADDRESS)")
        return function(**bindings)

    engine.function = breaks
    failure = fails_in_time(lambda: watch(engines, small("vicostream"), frames(200)))
    assert str(failure) == "CUDA failed (CUDA_ERROR_ILLEGAL_ADDRESS)"


@pytest.mark.parametrize("order", range(4))
def test_a_caller_whose_own_callback_fails_is_told_and_the_stream_goes_on(order, caplog):
    seen = []

    def on_event(event):
        seen.append(event)
        if isinstance(event, ChunkEvent) and event.index == 3:
            raise KeyError("theirs")

    with Session(
        SimulatedEngineSet(order=order), small("vicostream"), on_event=on_event
    ) as session:
        for frame in frames(200):
            session.push(frame)
        session.finish()
        assert session.summary().event_failures == 1
    assert [event.index for event in seen] == list(range(25))
    assert [record.getMessage() for record in caplog.records if "theirs" in record.getMessage()]


def fails_in_time(run):
    """What it raises."""
    failures = []

    def guarded():
        try:
            run()
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    return failures[0]


@pytest.mark.parametrize("name", BY_HEAD)
def test_memory_that_differs_by_head_is_refused_in_one_line(name):
    with pytest.raises(
        DeviceError, match=r"CPU engines only so far: take --system distinct"
    ) as caught:
        Session(SimulatedEngineSet(), load_system(name))
    assert "\n" not in str(caught.value)
