"""The scheduler alone, on stages that only wait: order, overlap, back-pressure, failure."""

import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from vicort.runtime.core import Chunk, Frame
from vicort.runtime.devices.host import HostDevice, InlineStream
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.frame_grid import Grid
from vicort.runtime.stages.pipeline import OverlappedPipeline, SequentialPipeline

PICTURE = np.zeros((1, 1, 3), np.uint8)


class Waiting:
    """A stage that takes its time and remembers what it did."""

    def __init__(self, name, stream, seconds, log, fail_at=None):
        self.name = name
        self.stream = stream
        self._seconds = seconds
        self._log = log
        self._fail_at = fail_at
        self.busy = 0.0  # seconds

    def run_in_stream(self, job):
        if job.chunk.index == self._fail_at:
            raise RuntimeError(f"{self.name} broke")
        began = time.perf_counter()
        time.sleep(self._seconds)
        self.busy += time.perf_counter() - began
        self._log.append((self.name, job.chunk.index))


def chunk(index):
    return Chunk(
        index,
        index,
        (Frame(PICTURE, Fraction(index), 0), Frame(PICTURE, Fraction(index), 1)),
        Grid(1, 1),
    )


def pipeline(seconds, depth=4, fail_at=None):
    device, log = HostDevice(), []
    stages = [
        Waiting(str(i), device.stream(str(i)), s, log, fail_at if i == 1 else None)
        for i, s in enumerate(seconds)
    ]
    overlapped, done = pipeline_of(stages, depth)
    return overlapped, log, done, device


def pipeline_of(stages, depth=4):
    """The pipeline, and what has left it: chunks by their index, and failures."""
    left = []
    buffers = [SimpleNamespace() for _ in range(depth)]
    overlapped = OverlappedPipeline(
        stages, buffers, StageClock(None), lambda job: left.append(job.chunk.index), left.append
    )
    return overlapped, left


def test_a_pipeline_of_timed_waits_runs_at_the_pace_of_its_slowest_stage():
    """That stage works 0.95 of the time is the benchmark's claim; here a loaded machine must not
    fail, and a sequential loop (0.36) must. Its waits count as long as they were."""
    device = HostDevice()
    stages = [
        Waiting(str(i), device.stream(str(i)), seconds, [])
        for i, seconds in enumerate([0.01, 0.025, 0.015, 0.02])
    ]
    overlapped, done = pipeline_of(stages)
    start = time.perf_counter()
    for index in range(30):
        overlapped.enter(chunk(index))
    overlapped.drain()
    assert stages[1].busy / (time.perf_counter() - start) > 0.6
    assert done == list(range(30))
    device.close()


def test_every_chunk_passes_every_stage_in_order_behind_the_chunk_before():
    overlapped, log, _, device = pipeline([0.001, 0, 0.002])
    for index in range(20):
        overlapped.enter(chunk(index))
    overlapped.drain()
    for stage in "012":
        assert [i for name, i in log if name == stage] == list(range(20))
    for index in range(20):
        assert [name for name, i in log if i == index] == ["0", "1", "2"]
    device.close()


def test_no_more_chunks_are_in_flight_than_there_are_buffers():
    overlapped, _log, done, device = pipeline([0, 0.05], depth=2)
    assert all(overlapped.try_enter(chunk(i)) for i in range(2))
    assert not overlapped.try_enter(chunk(2))
    overlapped.enter(chunk(2))  # waits
    assert 0 in done
    overlapped.drain()
    device.close()


def test_a_failure_stops_the_chunks_behind_it_and_reaches_the_caller():
    overlapped, _log, done, device = pipeline([0, 0, 0], fail_at=2)
    for index in range(3):
        overlapped.enter(chunk(index))
    overlapped.wait_for_room()
    with pytest.raises(RuntimeError, match="1 broke"):
        overlapped.drain()
    with pytest.raises(RuntimeError, match="1 broke"):
        overlapped.enter(chunk(3))
    assert done[:2] == [0, 1]
    assert str(*set(done[2:])) == "1 broke"
    device.close()


def test_the_sequential_twin_fails_alike():
    log, left = [], []
    stages = [Waiting(str(i), InlineStream(str(i)), 0, log, fail_at=2) for i in range(2)]
    twin = SequentialPipeline(
        stages,
        SimpleNamespace(),
        StageClock(None),
        lambda job: left.append(job.chunk.index),
        left.append,
    )
    for index in range(2):
        twin.enter(chunk(index))
    for index in (2, 3):
        with pytest.raises(RuntimeError, match="0 broke"):
            twin.enter(chunk(index))
    with pytest.raises(RuntimeError, match="0 broke"):
        twin.drain()
    assert left[:2] == [0, 1]
    assert str(*set(left[2:])) == "0 broke"


def test_the_sequential_twin_does_the_same_work():
    log, done = [], []
    stages = [Waiting(str(i), InlineStream(str(i)), 0, log) for i in range(3)]
    clock = StageClock(None)
    twin = SequentialPipeline(
        stages, SimpleNamespace(), clock, lambda job: done.append(job.chunk.index), done.append
    )
    for index in range(3):
        twin.enter(chunk(index))
    assert log == [(str(stage), index) for index in range(3) for stage in range(3)]
    assert done == [0, 1, 2]
    assert set(clock.totals) == {"0", "1", "2"}


def test_work_submitted_from_its_own_stream_runs_inside_its_caller():
    device = HostDevice()
    stream = device.stream("one")
    assert stream.run(lambda: stream.run(lambda: 7).done() + 1).done(timeout=5) == 8
    device.close()


def test_ordinary_streams_start_nothing_while_urgent_work_is_held():
    device = HostDevice()
    ordinary, urgent = device.stream("ordinary"), device.stream("urgent", urgent=True)
    with device.urgency.urgent_work():
        waiting = ordinary.run(lambda: 1)
        assert urgent.run(lambda: 2).done(timeout=5) == 2
        with pytest.raises(TimeoutError):
            waiting.done(timeout=0.05)
    assert waiting.done(timeout=5) == 1
    device.close()


def test_urgency_counts_its_holders():
    urgency, passed = Urgency(), threading.Event()
    with urgency.urgent_work():
        with urgency.urgent_work():
            pass
        thread = threading.Thread(target=lambda: (urgency.wait_for_urgent_work(), passed.set()))
        thread.start()
        assert not passed.wait(0.05)
    assert passed.wait(5)
    thread.join()


def test_buffers_are_aligned():
    for shape in ((3,), (5, 7)):
        assert HostDevice().empty(shape, np.float32).ctypes.data % 64 == 0
