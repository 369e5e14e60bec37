"""Two pipelines that run the same stages: overlapped, each stage on its own stream, and
sequential, one stage after another.

Both give bit-identical results. Look for a bug in the sequential one first. `done` is called with
each chunk that has left the last stage. A chunk that fails ends the stream: no chunk enters after
it, and `failed` is called with its error, once or several times, from where `done` would be.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Protocol

from vicort.runtime.core import Chunk
from vicort.runtime.devices.device import StreamEvent
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.errors import SessionClosed
from vicort.runtime.stages.job import Buffers, Job, Stage

FORK = "fork "  # before the name of a stage: its time for chunks that only questions see


class Pipeline(Protocol):
    newest: StreamEvent | None  # done when the newest chunk has left the last stage

    def enter(self, chunk: Chunk) -> None:
        """Hand a chunk to the first stage; waits while no buffers are free. Raises what an earlier
        chunk failed with."""
        ...

    def try_enter(self, chunk: Chunk) -> bool:
        """The same without waiting: False if no buffers are free."""
        ...

    def wait_for_room(self) -> None:
        """Wait until a chunk could enter at once."""
        ...

    def check(self) -> None:
        """Raises what a chunk has failed with."""
        ...

    def drain(self) -> None:
        """Wait until all chunks have left. Raises what one of them failed with."""
        ...

    def close(self) -> None:
        """Wake every thread that waits for buffers, with an error."""
        ...


class ChunkFailure:
    """What the earliest chunk that failed has failed with, if one has."""

    def __init__(self) -> None:
        self.chunk = math.inf  # its index
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None

    def note(self, chunk: Chunk, error: BaseException) -> None:
        if chunk.index < self.chunk:
            self._error, self._trace, self.chunk = error, error.__traceback__, chunk.index

    def check(self) -> None:
        """Raises it; its traceback does not grow with each call."""
        if self._error:
            raise self._error.with_traceback(self._trace)

    def until(self, chunk: Chunk) -> BaseException | None:
        """If it is of this chunk, or of one before it."""
        return self._error if self.chunk <= chunk.index else None


def _measured(clock: StageClock, stage: Stage, job: Job) -> AbstractContextManager[None]:
    name = f"{FORK}{stage.name}" if job.chunk.forked else stage.name
    return clock.measure(name, stage.stream, chunk=job.chunk.index, **job.notes)


class SequentialPipeline:
    """One chunk at a time through all stages, on the caller's thread."""

    def __init__(
        self,
        stages: Sequence[Stage],
        buffers: Buffers,
        clock: StageClock,
        done: Callable[[Job], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._stages = stages
        self._buffers = buffers
        self._clock = clock
        self._done = done
        self._failed = failed
        self.newest: StreamEvent | None = None
        self._failure = ChunkFailure()

    def enter(self, chunk: Chunk) -> None:
        self.check()
        job = Job(chunk, self._buffers)
        try:
            for stage in self._stages:
                stage.stream.run(self._run, stage, job).done()
        except BaseException as error:
            self._failure.note(chunk, error)
            self._failed(error)
            raise
        self._done(job)

    def _run(self, stage: Stage, job: Job) -> None:
        with _measured(self._clock, stage, job):
            stage.run_in_stream(job)

    def try_enter(self, chunk: Chunk) -> bool:
        self.enter(chunk)
        return True

    def wait_for_room(self) -> None:
        pass

    def check(self) -> None:
        self._failure.check()

    def drain(self) -> None:
        self.check()

    def close(self) -> None:
        pass


class OverlappedPipeline:
    """Chunk t is in vision while t + 1 is in preprocess and t - 1 in prefill; as many chunks in
    flight as there are buffers."""

    def __init__(
        self,
        stages: Sequence[Stage],
        buffers: Sequence[Buffers],
        clock: StageClock,
        done: Callable[[Job], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._stages = stages
        self._clock = clock
        self._done = done
        self._failed = failed
        self._free = list(buffers)
        self._in_flight = 0
        self._closed = False
        self._changed = threading.Condition()  # of the three above
        self.newest: StreamEvent | None = None
        self._failure = ChunkFailure()

    def enter(self, chunk: Chunk) -> None:
        with self._changed:
            self._wait_for_room()
            buffers = self._claim_buffers()
        self._start(chunk, buffers)

    def try_enter(self, chunk: Chunk) -> bool:
        with self._changed:
            if not self._free:
                return False
            buffers = self._claim_buffers()
        self._start(chunk, buffers)
        return True

    def wait_for_room(self) -> None:
        with self._changed:
            self._wait_for_room()

    def check(self) -> None:
        self._failure.check()

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._in_flight)
            self._check_open()
        self.check()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_for_room(self) -> None:
        self._changed.wait_for(lambda: self._closed or self._free)
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the session is closed: open a new one")

    def _claim_buffers(self) -> Buffers:
        self.check()
        self._in_flight += 1
        return self._free.pop()

    def _leave(self, job: Job) -> None:
        """A chunk leaves the last stage, or would leave it if none had failed."""
        try:
            if failure := self._failure.until(job.chunk):
                self._failed(failure)
        finally:
            with self._changed:
                self._in_flight -= 1
                self._free.append(job.buffers)
                self._changed.notify_all()

    def _start(self, chunk: Chunk, buffers: Buffers) -> None:
        job, before = Job(chunk, buffers), None
        for stage in self._stages:
            before = stage.stream.run(self._run, stage, job, before)
        self.newest = before

    def _run(self, stage: Stage, job: Job, before: StreamEvent | None) -> None:
        """Run one stage of one chunk, after the stage before; skip chunks after one that failed."""
        last = stage is self._stages[-1]
        try:
            if before:
                stage.stream.wait(before, first=True)  # nothing of this chunk has begun
            if self._failure.chunk < job.chunk.index:
                self.check()
            with _measured(self._clock, stage, job):
                stage.run_in_stream(job)
        except BaseException as error:
            self._failure.note(job.chunk, error)
            if last:
                self._leave(job)
            raise
        if last:
            stage.stream.notify(self._finish, job, failed=partial(self._device_failed, job))

    def _finish(self, job: Job) -> None:
        """Called once the device has finished a chunk."""
        try:
            self._clock.settle()
            self._done(job)
        except BaseException as error:
            self._failure.note(job.chunk, error)
            raise
        finally:
            self._leave(job)

    def _device_failed(self, job: Job, error: BaseException) -> None:
        """Called instead if the device failed while a chunk was in flight."""
        self._failure.note(job.chunk, error)
        self._leave(job)
