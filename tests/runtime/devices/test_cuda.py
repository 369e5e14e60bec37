"""The CUDA runtime on a simulated GPU: order, events, memory, staging, capture, pages."""

import gc
import itertools
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fake_engines import toy_model
from support.simulated_cuda import (
    Misuse,
    ObservedStream,
    Race,
    SimulatedDevice,
    SimulatedDriver,
    bare,
    simulated_kernels,
)
from support.sizes import examples

from vicort.runtime.devices.cuda import DeviceArray, Gpu
from vicort.runtime.devices.cuda.allocator import DeviceAllocator
from vicort.runtime.devices.cuda.staging import StagingRing
from vicort.runtime.devices.host import HostDevice, InlineStream
from vicort.runtime.devices.pages import EMPTY, page_bytes
from vicort.runtime.errors import DeviceError

MODEL = toy_model()
SEEDS = range(8)


def open_device(seed=0, threads=True, kv="float", **driver_options):
    opened = Gpu(SimulatedDriver(seed, **driver_options))
    return SimulatedDevice(
        opened, simulated_kernels(opened, MODEL, np.float32, kv), threads=threads, resize_on="cpu"
    )


@pytest.fixture
def device():
    opened = open_device()
    yield opened
    opened.close()


def put(device, stream, array, value):
    """An operation that writes a number everywhere."""
    driver, array = device.gpu.driver, bare(array)

    def run():
        driver.array_at(array, write=True)[...] = value

    driver.enqueue(stream.raw, run, f"put {value}")


def add(device, stream, target, source, value=0):
    """target = source + value"""
    driver, target, source = device.gpu.driver, bare(target), bare(source)

    def run():
        driver.array_at(target, write=True)[...] = driver.array_at(source) + value

    driver.enqueue(stream.raw, run, "add")


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def seen(device, stream, array):
    return stream.run(lambda: device.read(stream, array)[0].copy()).done()


# ---- arrays ----


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(-7, 7),
    st.integers(-7, 7),
    st.sampled_from(["f4", "u1", "i4"]),
)
def test_slices_and_shapes_lie_where_numpys_do(shape, start, stop, dtype):
    host = np.zeros(shape, dtype)
    array = DeviceArray(None, host.ctypes.data, tuple(shape), dtype)
    part, wanted = array[start:stop], host[start:stop]
    assert (part.shape, part.nbytes, part.ndim, len(part)) == (
        wanted.shape,
        wanted.nbytes,
        wanted.ndim,
        len(wanted),
    )
    if wanted.size:
        assert part.pointer == wanted.ctypes.data
    flat = array.reshape((array.size,))
    assert flat.pointer == array.pointer
    assert flat.shape == (host.size,)
    with pytest.raises(ValueError, match="cannot take the shape"):
        array.reshape((array.size + 1,))


@pytest.mark.parametrize("index", [0, slice(0, 4, 2), (slice(0, 1), slice(0, 1))])
def test_an_array_takes_no_index_that_would_not_be_contiguous(index):
    with pytest.raises(TypeError):
        DeviceArray(None, 0, (4, 4), "f4")[index]


# ---- streams and events ----


def chain(device, hops=6):
    """A number handed from stream to stream and counted up; returns what arrives."""
    streams = [device.stream(str(i), urgent=i == 1) for i in range(3)]
    array, before = device.empty((8,), np.float32), None

    def work(stream, before, hop):
        if before:
            stream.wait(before)
        if hop:
            add(device, stream, array, array, 1)
        else:
            put(device, stream, array, 0)

    for hop in range(hops):
        stream = streams[hop % 3]
        before = stream.run(work, stream, before, hop)
    last = streams[hops % 3]
    last.run(last.wait, before)
    return seen(device, last, array)


@pytest.mark.parametrize("seed", SEEDS)
def test_events_put_the_work_of_streams_in_order(seed):
    device = open_device(seed)
    assert chain(device).tolist() == [5] * 8
    device.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_stand_in_finds_a_missing_wait(seed, monkeypatch):
    # the host's half of it alone
    monkeypatch.setattr(ObservedStream, "wait", lambda self, event: event.enqueued())
    device = open_device(seed)
    with pytest.raises(Race):
        (chain(device), device.close())


@pytest.mark.parametrize("seed", SEEDS)
def test_without_its_race_detector_the_stand_in_still_runs_streams_in_a_bad_order(
    seed, monkeypatch
):
    """The order is bad enough to be seen in the numbers, in most of the orders drawn."""
    monkeypatch.setattr(ObservedStream, "wait", lambda self, event: event.enqueued())
    wrong = 0
    for order in range(4):
        device = open_device(4 * seed + order)
        device.gpu.driver.watched = False
        wrong += chain(device).tolist() != [5] * 8
        device.close()
    assert wrong >= 2


def test_nothing_runs_before_somebody_waits(device):
    stream, array = device.stream("a"), device.empty((4,), np.float32)
    event = stream.run(put, device, stream, array, 7)
    event.enqueued()
    assert "put 7" not in [label for label, _ in device.gpu.driver.log]
    event.done()
    assert "put 7" in [label for label, _ in device.gpu.driver.log]


def test_work_that_is_submitted_inside_a_streams_work_runs_at_once(device):
    stream, order = device.stream("a"), []

    def outer():
        inner = stream.run(order.append, "inner")
        order.append("outer")
        return inner.done()

    behind = [stream.run(outer), stream.run(order.append, "behind")]
    for event in behind:
        event.done()
    assert order == ["inner", "outer", "behind"]


def test_what_work_raises_reaches_whoever_waits_for_it(device):
    first, second = device.stream("a"), device.stream("b")

    def fail():
        raise RuntimeError("broke")

    event = first.run(fail)
    with pytest.raises(RuntimeError, match="broke"):
        event.done()
    with pytest.raises(RuntimeError, match="broke"):
        second.run(second.wait, event).done()
    assert second.run(lambda: 3).done() == 3


def test_urgent_streams_are_urgent_to_the_driver(device):
    assert [device.stream("a").raw.urgent, device.stream("b", urgent=True).raw.urgent] == [
        False,
        True,
    ]


def test_an_event_does_not_wait_for_what_comes_after_it(device):
    stream, array = device.stream("a"), device.empty((4,), np.float32)

    def work():
        put(device, stream, array, 1)
        early = stream.record()
        put(device, stream, array, 2)
        return early

    early = stream.run(work).enqueued()
    early.done()  # the stream has nothing else to run on the way there
    ran = [label for label, _ in device.gpu.driver.log]
    assert "put 1" in ran
    assert "put 2" not in ran
    assert seen(device, stream, array).tolist() == [2] * 4


def test_notices_come_in_order_and_only_when_the_device_is_done(device):
    streams, array, log = (
        [device.stream(str(i)) for i in range(2)],
        device.empty((4,), np.float32),
        [],
    )

    def work(number):
        stream = streams[number % 2]
        put(device, stream, array[number % 4 : number % 4 + 1], number)
        ran = device.gpu.driver.log
        stream.notify(lambda: log.append((number, (f"put {number}", stream.raw.number) in ran)))

    for number in range(6):
        streams[number % 2].run(work, number).enqueued()
    wait_until(lambda: len(log) == 6)
    assert log == [(number, True) for number in range(6)]


def test_whoever_is_to_be_told_hears_of_a_device_that_broke(device):
    stream, heard = device.stream("a"), []

    def explode():
        raise DeviceError("CUDA failed")

    def work():
        device.gpu.driver.enqueue(stream.raw, explode, "explode")
        stream.notify(heard.append, "done", failed=heard.append)

    stream.run(work).enqueued()
    wait_until(lambda: heard)
    assert [str(each) for each in heard] == ["CUDA failed"]
    with pytest.raises(DeviceError):
        stream.run(stream.notify, print).done()
    with pytest.raises(DeviceError):
        device.close()
    device.gpu.driver.failure = None


def test_a_failed_notice_is_raised_by_the_next(device):
    stream = device.stream("a")

    def fail():
        raise RuntimeError("broke")

    stream.run(stream.notify, fail).done()
    wait_until(lambda: device.callbacks._failure)
    with pytest.raises(RuntimeError, match="broke"):
        stream.run(stream.notify, print).done()
    heard = []
    stream.run(lambda: stream.notify(print, failed=heard.append)).done()
    assert [str(error) for error in heard] == ["broke"]


def test_marks_are_moments_on_the_hosts_clock(device):
    stream, other = device.stream("a"), device.stream("b")
    start = time.perf_counter_ns()
    marks = [stream.run(stream.mark).enqueued() for _ in range(3)]
    assert other.run(other.mark).done().ns() is not None
    stream.synchronize()
    at = [mark.ns() for mark in marks]
    assert start - 1_000_000 <= at[0] <= at[1] <= at[2] <= time.perf_counter_ns()


def test_a_mark_that_the_device_has_not_come_to_has_no_time(device):
    stream, gate = device.stream("a"), device.stream("gate")
    closed = gate.run(gate.record).enqueued()
    driver = device.gpu.driver

    def blocked():
        driver.enqueue(
            stream.raw,
            lambda: None,
            "wait",
            after=SimpleNamespace(is_done=False, clock=closed.placed.result()[1].clock),
        )
        return stream.mark()

    mark = stream.run(blocked).enqueued()
    assert mark.ns() is None
    stream.raw.queue[0].after = None
    stream.synchronize()
    assert mark.ns() is not None


def test_the_clock_stays_exact_over_hours(device, monkeypatch):
    """CUDA tells milliseconds in float32, whose steps are a quarter of a millisecond after an
    hour."""
    driver, stream, clock = device.gpu.driver, device.stream("a"), device.gpu.clock
    base, clock_ns = driver.record(stream.raw, timing=True), clock._anchor_ns
    zero, random = clock._anchor.at, np.random.default_rng(0)
    driver.synchronize(base)
    monkeypatch.setattr(
        driver, "elapsed_ms", lambda start, end: float(np.float32((end.at - start.at) / 1e6))
    )
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 1 << 62)
    for seconds in range(0, 4 * 3600, 7):
        event = driver.record(stream.raw, timing=True)
        driver.synchronize(event)
        # at any part of a millisecond
        event.at = zero + seconds * 1_000_000_000 + int(random.integers(1_000_000))
        assert abs(clock.ns(event) - (clock_ns + event.at - zero)) < 200_000


def test_without_threads_all_work_runs_in_its_caller_on_one_cuda_stream():
    device = open_device(threads=False)
    streams = [device.stream(str(i), urgent=i == 1) for i in range(3)]
    assert len({stream.handle for stream in streams}) == 1
    assert streams[1].run(threading.get_ident).enqueued() == threading.get_ident()
    assert chain(device).tolist() == [5] * 8
    told = []
    streams[0].run(lambda: streams[0].notify(told.append, 1))
    assert told == [1]
    device.close()


def test_closing_waits_for_what_is_under_way_and_lets_go_of_the_streams(device):
    stream, array = device.stream("a"), device.empty((4,), np.float32)
    stream.run(put, device, stream, array, 7)
    stream.run(lambda: None).enqueued()
    device.close()
    assert not stream.raw.queue
    assert ("put 7", stream.raw.number) in device.gpu.driver.log


# ---- memory ----


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=20))
@settings(max_examples=examples(30))
def test_arrays_lie_at_multiples_of_256_bytes_and_apart(shapes):
    gpu_ = Gpu(SimulatedDriver())
    arrays = [gpu_.empty(shape, "f4") for shape in shapes]
    assert all(array.pointer % 256 == 0 for array in arrays)
    spans = sorted((array.pointer, array.pointer + array.nbytes) for array in arrays)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert gpu_.memory.in_use >= sum(array.nbytes for array in arrays)


def test_memory_that_is_let_go_is_used_again(device):
    constants = device.gpu.driver.used
    before = device.gpu.driver.counts["allocate"]
    for _ in range(5):
        array = device.empty((100,), np.float32)
        first = array.pointer
        part = array[10:20]
        del array
        other = device.empty((100,), np.float32)
        assert other.pointer != first  # a part of it is still held
        del part, other
    assert device.gpu.driver.counts["allocate"] == before + 2
    gc.collect()
    device.gpu.memory.trim()
    assert (
        device.gpu.memory.in_use
        == device.gpu.memory.reserved
        == device.gpu.driver.used
        == constants
    )


def reuse(device):
    """A block is let go while one stream still reads it, and taken by another that writes."""
    reader, writer, keep = (
        device.stream("reader"),
        device.stream("writer"),
        device.empty((64,), np.float32),
    )

    def read_late(array):
        put(device, reader, array, 3)
        for _ in range(3):
            add(device, reader, keep, array)

    reader.run(read_late, device.empty((64,), np.float32)).enqueued()
    # the thread drops its last reference a moment later
    wait_until(lambda: device.gpu.memory._freed)

    def write():
        again = device.empty((64,), np.float32)
        put(device, writer, again, 9)

    writer.run(write).enqueued()
    writer.synchronize()
    return seen(device, reader, keep)


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_is_used_again_only_behind_all_work_on_it(seed):
    device = open_device(seed)
    before = device.gpu.driver.counts["allocate"]
    assert reuse(device).tolist() == [3] * 64
    assert device.gpu.driver.counts["allocate"] == before + 2
    device.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_stand_in_finds_memory_that_is_used_again_too_early(seed, monkeypatch):
    monkeypatch.setattr(DeviceAllocator, "_wait_for", lambda self, events: None)
    device = open_device(seed)
    with pytest.raises(Race):
        (reuse(device), device.close())


def test_a_caller_outside_all_streams_does_not_wait_for_memory_that_is_still_used(device):
    stream, before = device.stream("a"), Counter(device.gpu.driver.counts)
    first = device.empty((16,), np.float32)
    stream.run(put, device, stream, first, 1).enqueued()
    del first
    wait_until(lambda: device.gpu.memory._freed)
    device.gpu.driver.is_done = lambda event: event.is_done  # asking brings nothing on
    second, waits = device.empty((16,), np.float32), len(device.gpu.driver.waits)
    assert device.gpu.driver.counts["allocate"] == before["allocate"] + 2
    assert len(device.gpu.driver.waits) == waits
    stream.synchronize()
    third = device.empty((16,), np.float32)  # the first one's
    assert device.gpu.driver.counts["allocate"] == before["allocate"] + 2
    assert third.pointer != second.pointer


def test_a_full_device_says_what_was_asked_what_is_in_use_and_what_would_fit():
    small = Gpu(SimulatedDriver(total=10_000_000))
    held = small.empty((4_000_000,), np.uint8)
    with pytest.raises(
        DeviceError,
        match=r"the vision engine requested 8\.0 MB, 4\.0 MB are in use, 6\.0 MB would fit"
        r".*device_mb.* by 2\.0 MB or",
    ):
        small.empty((8_000_000,), np.uint8, "the vision engine")
    del held


def test_a_limit_holds_and_idle_memory_makes_room():
    driver = SimulatedDriver()
    limited = Gpu(driver, limit=1 << 20)
    first = limited.empty((600_000,), np.uint8)
    with pytest.raises(DeviceError, match="out of device memory"):
        limited.empty((600_000,), np.uint8)
    del first
    again = limited.empty((700_000,), np.uint8)  # of another size: the idle block goes back first
    assert limited.memory.reserved == limited.memory.in_use == driver.used <= 1 << 20
    del again


def test_pages_that_do_not_fit_are_told_with_the_budget_that_does():
    device = open_device(total=1_000_000)
    with pytest.raises(DeviceError, match=r"give --memory less than 1MB"):
        device.pool(MODEL, 10_000, np.float32)
    device.close()


def test_pages_leave_room_for_what_runs_of_engines_will_take():
    gpu = Gpu(SimulatedDriver(total=9_000_000))
    kernels = simulated_kernels(gpu, MODEL, np.float32)
    pages = 6_000_000 // page_bytes(MODEL, np.float32)
    device = SimulatedDevice(gpu, kernels, resize_on="cpu", run_bytes=4_000_000)
    with pytest.raises(DeviceError, match=r"take 6, runs 4: give --memory less than 5MB"):
        device.pool(MODEL, pages, np.float32)
    device.pool(MODEL, pages // 2, np.float32)
    device.close()


def test_memory_is_not_allocated_while_work_is_captured(device):
    stream = device.stream("a")
    with pytest.raises(DeviceError, match="graph capture"):
        stream.run(stream.capture, lambda: device.empty((4,), np.float32)).done()


def test_zeros_are_there_for_the_caller(device):
    outside = device.zeros((5,), np.float32)
    stream = device.stream("a")
    inside = stream.run(device.zeros, (5,), np.int32).enqueued()
    assert (
        seen(device, stream, outside).tolist() == seen(device, stream, inside).tolist() == [0] * 5
    )


# ---- host to device and back ----


@given(st.lists(st.integers(1, 900), min_size=1, max_size=30), st.integers(0, 1000))
# a copy behind the head hid those before it
@example([1, 129, 257, 321, 449, 449, 449, 705, 1, 769, 1, 577, 769, 833, 833], 0)
@settings(max_examples=examples(40))
def test_a_source_may_change_as_soon_as_its_upload_returns(sizes, seed):
    device = open_device(seed)
    stream, random = device.stream("a"), np.random.default_rng(seed)
    # a few uploads: the ring wraps
    stream.ring._memory = device.gpu.pinned.empty((16 << 10,), np.uint8)
    targets, wanted = [device.empty((size,), np.float32) for size in sizes], []

    def work():
        for target in targets:
            source = random.normal(size=target.shape).astype(np.float32)
            wanted.append(source.copy())
            device.upload(target, source, stream)
            source[:] = np.nan

    stream.run(work).enqueued()
    for target, value in zip(targets, wanted, strict=True):
        np.testing.assert_array_equal(seen(device, stream, target), value)
    device.close()


def uploads(device, count, ring_bytes=1 << 20):
    stream, target = device.stream("a"), device.empty((1024,), np.float32)
    sums = device.zeros((1024,), np.float32)

    def work():
        stream.ring._memory = device.gpu.pinned.empty((ring_bytes,), np.uint8)
        for number in range(count):
            device.upload(target, np.full(1024, number, np.float32), stream)
            add_both(device, stream, sums, target)

    stream.run(work).enqueued()
    waits = [name for name in device.gpu.driver.waits if name.startswith("a")]
    return seen(device, stream, sums)[0], len(waits)


def add_both(device, stream, target, source):
    driver = device.gpu.driver

    def run():
        driver.array_at(target, write=True)[...] += driver.array_at(source)

    driver.enqueue(stream.raw, run, "sum")


def test_uploads_wait_only_where_the_ring_wraps_onto_a_copy_that_is_not_done():
    device = open_device()
    assert uploads(device, 40) == (sum(range(40)), 0)
    device.close()
    device = open_device()
    total, waits = uploads(device, 40, ring_bytes=4 * 4096)
    assert total == sum(range(40))
    assert 1 <= waits <= 36
    device.close()


def test_a_ring_that_does_not_wait_is_found_out(monkeypatch):
    def place(self, size):
        start = self._head if self._head + size <= self._memory.nbytes else 0
        self._head = start + size
        return start

    monkeypatch.setattr(StagingRing, "_allocate", place)
    device = open_device()
    assert uploads(device, 40, ring_bytes=4 * 4096)[0] != sum(range(40))
    device.close()


def test_an_upload_that_does_not_fit_its_target_is_refused(device):
    stream, target = device.stream("a"), device.empty((4,), np.float32)
    for source in (np.zeros(5, np.float32), np.zeros(4, np.int32)):
        with pytest.raises(ValueError, match="cannot be uploaded"):
            stream.run(device.upload, target, source, stream).done()
    with pytest.raises(ValueError, match="cannot be copied"):
        stream.run(device.copy, target, target[:3], stream).done()


@pytest.mark.parametrize("seed", SEEDS)
def test_reading_waits_for_the_stream_and_what_is_read_stays(seed):
    device = open_device(seed)
    stream, a, b = (
        device.stream("a"),
        device.empty((4,), np.float32),
        device.empty((2, 2), np.int32),
    )

    def work():
        put(device, stream, a, 1)
        put(device, stream, b, 2)
        seen_a, seen_b = device.read(stream, a, b)
        put(device, stream, a, 3)
        device.read(stream, b[1:])
        return seen_a, seen_b

    seen_a, seen_b = stream.run(work).done()
    assert seen_a.tolist() == [1] * 4
    assert seen_b.tolist() == [[2, 2], [2, 2]]
    assert not seen_a.flags.writeable
    device.close()


def test_reading_the_same_again_allocates_nothing(device):
    stream, array = device.stream("a"), device.zeros((4,), np.float32)
    seen(device, stream, array)
    before = Counter(device.gpu.driver.counts)
    for _ in range(5):
        seen(device, stream, array)
    assert device.gpu.driver.counts == before


def test_pinned_memory_goes_back_when_its_last_view_goes(device):
    array = device.gpu.pinned.empty((10, 10), np.float32)
    view = array[3:]
    del array
    device.gpu.pinned.collect()
    view[:] = 5
    regions = len(device.gpu.driver._regions)
    del view
    device.gpu.pinned.collect()
    assert len(device.gpu.driver._regions) == regions - 1


# ---- graphs ----


def test_captured_work_runs_when_its_graph_is_launched_and_not_before(device):
    stream, array = device.stream("a"), device.zeros((4,), np.float32)
    graph = stream.run(stream.capture, lambda: add(device, stream, array, array, 1)).enqueued()
    assert seen(device, stream, array).tolist() == [0] * 4
    for _ in range(3):
        stream.run(graph.launch, stream).enqueued()
    graph.close()
    assert seen(device, stream, array).tolist() == [3] * 4


def test_a_graph_goes_with_the_last_who_refers_to_it(device, monkeypatch):
    stream, array, closed = device.stream("a"), device.zeros((4,), np.float32), []
    monkeypatch.setattr(device.gpu.driver, "close_graph", closed.append)
    graphs = [
        stream.run(stream.capture, lambda: put(device, stream, array, 1)).enqueued()
        for _ in range(2)
    ]
    graphs[0].close()
    graphs[0].close()
    assert len(closed) == 1
    graphs.clear()
    wait_until(lambda: len(closed) == 2)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(device):
    stream, array = device.stream("a"), device.zeros((4,), np.float32)

    def cannot():
        add(device, stream, array, array, 1)
        raise DeviceError("not while capturing")

    with pytest.raises(DeviceError, match="not while"):
        stream.run(stream.capture, cannot).done()
    stream.run(add, device, stream, array, array, 5)
    assert seen(device, stream, array).tolist() == [5] * 4


def test_a_wait_of_the_host_in_a_capture_fails_the_capture(device):
    stream, array = device.stream("a"), device.zeros((4,), np.float32)
    with pytest.raises(Misuse):
        stream.run(stream.capture, lambda: device.read(stream, array)).done()
    assert seen(device, stream, array).tolist() == [0] * 4


def test_memory_is_given_out_on_other_threads_while_a_stream_captures(device):
    """Finding out when a block was last used asks all streams for an event: not a stream that would
    capture it."""
    stream, other = device.stream("a"), device.stream("b")
    capturing, go_on = threading.Event(), threading.Event()

    def slow():
        capturing.set()
        go_on.wait(10)

    event = stream.run(stream.capture, slow)
    capturing.wait(10)
    array = device.empty((32,), np.float32)
    del array
    taken = other.run(device.empty, (32,), np.float32)
    with pytest.raises(TimeoutError):
        taken.placed.result(timeout=0.05)
    go_on.set()
    assert event.enqueued()
    assert taken.enqueued().shape == (32,)


# ---- pages ----

PAGES = 6
slots = st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=3, unique=True)
steps = st.one_of(
    st.tuples(st.just("write"), slots, st.integers(0, 99)),
    st.tuples(st.just("clear"), slots, st.just(0)),
    st.tuples(st.just("shift"), slots, st.integers(0, 9)),
    st.tuples(st.just("copy"), slots, st.integers(0, PAGES - 1)),
    st.tuples(st.just("to host"), slots, st.integers(0, PAGES - 1)),
    st.tuples(st.just("from host"), slots, st.integers(0, PAGES - 1)),
)


def play(device, stream, steps, dtype):
    """Do a list of steps to a pool and its host tier; returns data, scales of int8 pages, and
    positions of both, unused cells left out."""
    pool, host = device.pool(MODEL, PAGES, dtype), device.host_pool(MODEL, PAGES, dtype)
    kv = (MODEL.layers, 5, MODEL.kv_heads, MODEL.head_dim)
    k, v = device.empty(kv, np.float32), device.empty(kv, np.float32)

    def work():
        for verb, slots, number in steps:
            others = [(slot + number) % PAGES for slot in slots]
            if verb == "write":
                random = np.random.default_rng(number)
                device.upload(k, random.normal(size=kv).astype(np.float32), stream)
                device.upload(v, random.normal(size=kv).astype(np.float32), stream)
                cells = random.integers(0, MODEL.page_tokens, len(slots))
                pool.write(
                    np.array(slots), cells, k, v, random.integers(0, 50, (len(slots), 3)), stream
                )
            elif verb == "clear":
                pool.clear(slots, stream)
            elif verb == "shift":
                pool.shift(slots, np.array([number, 0, 1]), 2, stream)
            elif verb == "copy":
                if not set(slots) & set(others):
                    pool.copy_from(pool, slots, others, stream)
            elif verb == "to host":
                host.copy_from(pool, slots, others, stream)
            else:
                pool.copy_from(host, slots, others, stream)
        scales = [] if pool.scales is None else [pool.scales]
        arrays = device.read(stream, pool.data, pool.cell_positions, *scales)
        return [np.array(a) for a in arrays]

    data, where, *scales = stream.run(work).done()
    np.testing.assert_array_equal(where, pool.host_positions)
    far = [] if host.scales is None else [np.array(host.scales)]
    tiers = [(data, where, scales), (np.array(host.data), np.array(host.cell_positions), far)]
    return [
        [
            where,
            np.where(filled(where), data, 0),
            *(np.where(filled(where)[..., 0], array, 0) for array in scales),
        ]
        for data, where, scales in tiers
    ]


def filled(where):
    """[P, 1, 1, 1, T, 1] whether a cell of the pool's data holds a token"""
    return (where[:, 0, 0, :, 0] != EMPTY)[:, None, None, None, :, None]


@given(st.lists(steps, max_size=12), st.integers(0, 1000), st.sampled_from(["float", "int8"]))
@settings(max_examples=examples(60))
@example([("write", [0], 1), ("to host", [0], 2), ("from host", [2], 1)], 0, "int8")
def test_pages_on_the_device_are_what_they_are_on_the_host(steps, seed, kv):
    device, dtype = open_device(seed, kv=kv), np.int8 if kv == "int8" else np.float32
    got, wanted = (
        play(device, device.stream("a"), steps, dtype),
        play(HostDevice(threads=False), InlineStream("a"), steps, dtype),
    )
    for tier, wanted_tier in zip(got, wanted, strict=True):
        assert len(tier) == (3 if kv == "int8" else 2)
        for array, wanted_array in zip(tier, wanted_tier, strict=True):
            np.testing.assert_array_equal(array, wanted_array)
    device.close()


def test_moving_pages_does_not_wait_and_allocates_nothing(device):
    stream = device.stream("a")
    pool, host = device.pool(MODEL, 8, np.float32), device.host_pool(MODEL, 8, np.float32)

    def work():
        pool.clear(range(8), stream)
        host.copy_from(pool, [1, 2], [5, 6], stream)
        pool.copy_from(host, [5, 6], [3, 4], stream)
        pool.shift(range(8), np.array([1, 0, 0]), 0, stream)

    stream.run(work).enqueued()
    before, waits = Counter(device.gpu.driver.counts), len(device.gpu.driver.waits)
    for _ in range(10):
        stream.run(work).enqueued()
    assert device.gpu.driver.counts == before
    assert len(device.gpu.driver.waits) == waits


def test_frames_that_are_resized_on_the_cpu_reach_the_device(device):
    frames = [np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8) for i in range(4)]
    stream, out = device.stream("a"), device.empty((4, 8, 8, 3), np.uint8)
    preprocessor = device.preprocessor((8, 8), threads=1)
    stream.run(preprocessor, frames, out, stream).enqueued()
    np.testing.assert_array_equal(seen(device, stream, out), np.stack(frames))
