"""One run of the vision graph for units of several sessions."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.simulated_cuda import SimulatedEngineSet
from support.streams import frames
from support.systems import system

from vicort.runtime.core import UNIT_FRAMES, Answer, ChunkEvent, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, EngineError, SessionClosed
from vicort.runtime.frame_grid import Grid
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session
from vicort.runtime.stages.shared_vision import SharedVision, VisionRuns
from vicort.runtime.stages.unit_encoder import OwnEncoder

SHORT = Sampling(max_tokens=4)
ASK = "what color was the circle?"
GRIDS = (Grid(2, 2), Grid(1, 3), Grid(3, 1))
LARGEST = 4  # units of a run: a chunk of the toy model has 8 frames
SIZES = st.lists(st.tuples(st.integers(1, LARGEST), st.sampled_from(GRIDS)), max_size=9)


class Gate:
    """Makes the first run of an engine set's vision wait until it is opened."""

    def __init__(self, engines):
        self.reached, self.open = threading.Event(), threading.Event()
        self._see = engines.vision.function
        engines.vision.function = self._run

    def _run(self, **bindings):
        if not self.reached.is_set():
            self.reached.set()
            assert self.open.wait(timeout=30)
        return self._see(**bindings)


class Asker:
    """A session's side: frames, features and a stream."""

    def __init__(self, engines, seed, units, grid):
        device, model = engines.new_device(), engines.manifest.model
        random = np.random.default_rng(seed)
        shape = (UNIT_FRAMES * units, *grid.pixels(model.token_pixels), 3)
        self.frames = random.integers(0, 256, shape, np.uint8)
        self.grid, self.model, self.device = grid, model, device
        self.features = np.zeros((units, grid.tokens, model.width), np.float32)
        self.stream = device.stream("vision")

    def start(self, encoder):
        return self.stream.run(encoder.encode, self.frames, self.features, self.grid, self.stream)

    def expected(self, engines):
        features = np.zeros_like(self.features)
        encoder = OwnEncoder(engines.vision, self.device, self.model)
        work = (encoder.encode, self.frames, features, self.grid, self.stream)
        self.stream.run(*work).done()
        return features


class DeviceAsker:
    """One unit in a GPU's memory, and a stream there."""

    def __init__(self, engines):
        self.device, self.model = engines.new_device(), engines.manifest.model
        self.stream = self.device.stream("vision")
        height, width = self.model.fixed_size
        self.frames = self.device.zeros((UNIT_FRAMES, height, width, 3), np.uint8)
        self.features = self.device.zeros((1, self.model.unit_tokens, self.model.width), np.float32)

    def start(self, encoder):
        grid = GRIDS[0]
        return self.stream.run(encoder.encode, self.frames, self.features, grid, self.stream)


def wait_until_all_wait(vision, count):
    deadline = threading.Event()
    for _ in range(3000):
        if len(vision._waiting) == count:
            return
        deadline.wait(0.01)
    raise AssertionError(f"{len(vision._waiting)} of {count} requests wait")


def plain_batches(requests):
    """Which requests run together: of those that wait, the oldest, and all of its grid that fit."""
    waiting = list(enumerate(requests))
    while waiting:
        batch, units = [], 0
        for number, (count, grid) in waiting:
            if grid == waiting[0][1][1] and units + count <= LARGEST:
                batch.append(number)
                units += count
        waiting = [each for each in waiting if each[0] not in batch]
        yield units, requests[batch[0]][1]


@given(requests=SIZES)
def test_what_waits_is_encoded_together_and_each_gets_its_own_features(requests):
    engines = FakeEngineSet(grid=None, max_pixels=9 * 16)
    gate = Gate(engines)
    with SharedVision(engines) as vision:
        first = Asker(engines, 0, 1, GRIDS[0])
        askers = [Asker(engines, 1 + i, *request) for i, request in enumerate(requests)]
        events = [first.start(vision)]
        assert gate.reached.wait(timeout=30)
        for number, asker in enumerate(askers):
            events.append(asker.start(vision))
            wait_until_all_wait(vision, number + 1)
        gate.open.set()
        for event in events:
            event.done(timeout=30)
        found = [
            (run["frames"][0] // UNIT_FRAMES, run["features"][1]) for run in engines.vision.runs
        ]
        batches = [(1, GRIDS[0]), *plain_batches(requests)]
        assert found == [(units, grid.tokens) for units, grid in batches]
        units = 1 + sum(count for count, _ in requests)
        assert vision.counts() == VisionRuns(len(batches), 1 + len(requests), units)
    for asker in (first, *askers):
        assert np.array_equal(asker.features, asker.expected(engines))
        asker.device.close()


def test_on_a_gpu_what_comes_while_two_runs_are_enqueued_is_one_batch():
    engines, may_wait = SimulatedEngineSet(), threading.Event()
    synchronize = engines.driver.synchronize

    def later(event):
        if threading.current_thread().name.startswith("shared vision"):
            assert may_wait.wait(timeout=30)
        synchronize(event)

    engines.driver.synchronize = later
    with SharedVision(engines) as vision:
        for _ in range(2):
            DeviceAsker(engines).start(vision).enqueued()
        askers = [DeviceAsker(engines) for _ in range(3)]
        events = [asker.start(vision) for asker in askers]
        wait_until_all_wait(vision, 3)
        may_wait.set()
        for event in events:
            event.done()
        assert vision.counts() == VisionRuns(runs=3, requests=5, units=5)


def watch(session, video):
    """All events of a stream with two questions."""
    for number, frame in enumerate(video):
        session.push(frame)
        if number == len(video) // 2:
            session.submit(Question(ASK, session.now, sampling=SHORT)).result(timeout=60)
    session.finish()
    return session.ask(ASK).text


def stored(event):
    return (event.index, event.start, event.end, event.kept)


def together(engines, systems, videos, **options):
    """Answers and chunks of several sessions at the same time, each on its own thread."""
    chunks = [[] for _ in systems]

    def one(number):
        kept = chunks[number]
        with Session(
            engines,
            systems[number],
            sampling=SHORT,
            on_event=lambda event: isinstance(event, (ChunkEvent, Answer)) and kept.append(event),
            **options,
        ) as session:
            return watch(session, videos[number])

    with ThreadPoolExecutor(len(systems)) as pool:
        answers = list(pool.map(one, range(len(systems))))
    return answers, [
        [(e.text, e.seen_until) if isinstance(e, Answer) else stored(e) for e in kept]
        for kept in chunks
    ]


def small(name):
    return load_system(name).with_(memory=system().memory)


@pytest.mark.parametrize("kind", [FakeEngineSet, SimulatedEngineSet])
@pytest.mark.parametrize("options", [{}, {"freshness": "now"}, {"overlap": False}])
def test_sessions_say_with_shared_vision_what_they_say_without(kind, options):
    systems = [system(), system(retrieval="{policy: similar-chunks, top: 2}"), system(), system()]
    videos = [frames(33 + 2 * seed, seed=seed) for seed in range(4)]
    apart = together(kind(), systems, videos, **(options | {"freshness": "complete"}))
    engines = kind()
    with SharedVision(engines) as vision:
        shared = together(engines, systems, videos, shared_vision=vision, **options)
        counts = vision.counts()
    assert counts.units >= sum(-(-len(video) // UNIT_FRAMES) for video in videos)
    assert counts.runs <= counts.requests
    if options.get("freshness") != "now":  # whose answers in between depend on the time
        assert shared == apart
    else:
        assert shared[0] == apart[0]


def test_a_pruned_stream_shares_its_whole_units():
    engines, video = FakeEngineSet(), frames(17)
    codecflow = system(drop=load_system("codecflow").drop.model_dump())
    apart = together(FakeEngineSet(), [codecflow, system()], [video, video])
    with SharedVision(engines) as vision:
        assert (
            together(engines, [codecflow, system()], [video, video], shared_vision=vision) == apart
        )
        assert vision.counts().runs


def test_a_failed_run_fails_the_sessions_of_its_units_and_no_later_run():
    engines, video = FakeEngineSet(), frames(8)
    see = engines.vision.function

    def fail(**bindings):
        raise EngineError("it broke")

    with SharedVision(engines) as vision:
        engines.vision.function = fail
        with Session(engines, system(), shared_vision=vision) as session:
            for frame in video:
                session.push(frame)
            with pytest.raises(EngineError, match="it broke"):
                session.finish()
        engines.vision.function = see
        with Session(engines, system(), shared_vision=vision, sampling=SHORT) as session:
            for frame in video:
                session.push(frame)
            session.finish()
            assert session.ask(ASK).seen_until == video[-1].time


def test_closed_before_its_sessions_it_says_so():
    engines = FakeEngineSet()
    gate, vision = Gate(engines), SharedVision(engines)
    running, waiting = (Asker(engines, seed, 1, GRIDS[0]) for seed in range(2))
    events = [running.start(vision)]
    assert gate.reached.wait(timeout=30)
    events.append(waiting.start(vision))
    wait_until_all_wait(vision, 1)
    closing = threading.Thread(target=vision.close)
    closing.start()
    with pytest.raises(SessionClosed, match="close it after its sessions"):
        events[1].done(timeout=30)
    gate.open.set()
    closing.join(timeout=30)
    events[0].done(timeout=30)
    with pytest.raises(SessionClosed):
        waiting.start(vision).done(timeout=30)


@pytest.mark.parametrize("wrong", ["yes", 1, object()])
def test_what_is_no_shared_vision_is_refused(wrong):
    with pytest.raises(ConfigError, match="shared_vision"):
        Session(FakeEngineSet(), system(), shared_vision=wrong)


def test_shared_vision_of_other_engines_is_refused():
    with (
        SharedVision(FakeEngineSet()) as vision,
        pytest.raises(ConfigError, match="the same open EngineSet"),
    ):
        Session(FakeEngineSet(), system(), shared_vision=vision)


def test_real_engines_encode_a_unit_alike_whatever_it_runs_with(tiny_engines):
    with EngineSet.open(tiny_engines) as engines, SharedVision(engines) as vision:
        model = engines.manifest.model
        grid = model.grid(240, 320)
        askers = [Asker(engines, seed, 1 + seed % 3, grid) for seed in range(6)]
        for event in [asker.start(vision) for asker in askers]:
            event.done(timeout=60)
        for asker in askers:
            assert np.array_equal(asker.features, asker.expected(engines))
            asker.device.close()
