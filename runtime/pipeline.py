"""Chunks through the stages: overlapped, each stage on its own stream, and its plain twin, one stage after another.

Both give bit-identical results: start a bug hunt with the twin.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Protocol

from vicort.runtime.core import Chunk
from vicort.runtime.device import Event
from vicort.runtime.errors import VicortError
from vicort.runtime.stages import Buffers, Job, Stage


class SpanSink(Protocol):
    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None: ...


class StageClock:
    """Time spent inside each stage, and its spans for a trace."""

    def __init__(self, trace: SpanSink | None) -> None:
        self._trace = trace
        self._lock = threading.Lock()
        self.totals: dict[str, int] = {}  # nanoseconds

    @contextmanager
    def measure(self, stage: str, **args: Any) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            end = time.perf_counter_ns()
            with self._lock:
                self.totals[stage] = self.totals.get(stage, 0) + end - start
            if self._trace:
                self._trace.span(stage, stage, start, end, **args)


class Pipeline(Protocol):
    newest: Event | None  # done when the newest chunk is through

    def submit(self, chunk: Chunk) -> None:
        """Hand a chunk to the first stage; waits while no buffers are free. Raises what an earlier chunk failed with."""
        ...

    def try_submit(self, chunk: Chunk) -> bool:
        """The same without waiting: False if no buffers are free."""
        ...

    def wait_for_room(self) -> None:
        """Wait until a chunk could enter at once."""
        ...

    def drain(self) -> None:
        """Wait until all chunks are through. Raises what one of them failed with."""
        ...

    def close(self) -> None:
        """Wake whoever waits for buffers, with an error: none will come back."""
        ...


class SequentialPipeline:
    """One chunk at a time through all stages, on the caller's thread."""

    def __init__(self, stages: Sequence[Stage], buffers: Buffers, clock: StageClock, done: Callable[[Job], None]) -> None:
        self._stages, self._buffers, self._clock, self._done = stages, buffers, clock, done
        self.newest: Event | None = None

    def submit(self, chunk: Chunk) -> None:
        job = Job(chunk, self._buffers)
        for stage in self._stages:
            with self._clock.measure(stage.name, chunk=chunk.index):
                stage.run(job)
        self._done(job)

    def try_submit(self, chunk: Chunk) -> bool:
        self.submit(chunk)
        return True

    def wait_for_room(self) -> None:
        pass

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class OverlappedPipeline:
    """Chunk t is in vision while t + 1 is in preprocess and t - 1 in prefill; as many chunks in flight as there are buffers."""

    def __init__(self, stages: Sequence[Stage], buffers: Sequence[Buffers], clock: StageClock, done: Callable[[Job], None]) -> None:
        self._stages, self._clock, self._done = stages, clock, done
        self._free: SimpleQueue[Buffers | None] = SimpleQueue()  # None: closed
        for each in buffers:
            self._free.put(each)
        self.newest: Event | None = None
        self._failure: BaseException | None = None  # of the earliest chunk that failed
        self._failed_chunk = 0

    def submit(self, chunk: Chunk) -> None:
        self._enter(chunk, self._take_buffers())

    def try_submit(self, chunk: Chunk) -> bool:
        if self._free.empty():
            return False
        self._enter(chunk, self._take_buffers())
        return True

    def wait_for_room(self) -> None:
        self._free.put(self._take_buffers())

    def drain(self) -> None:
        if self.newest:
            self.newest.result()

    def close(self) -> None:
        self._free.put(None)

    def _take_buffers(self) -> Buffers:
        buffers = self._free.get()
        if buffers is None:
            self._free.put(None)
            raise VicortError("the session is closed: open a new one")
        return buffers

    def _enter(self, chunk: Chunk, buffers: Buffers) -> None:
        if self._failure:
            raise self._failure
        job, before = Job(chunk, buffers), None
        for stage in self._stages:
            before = stage.stream.submit(self._run, stage, job, before)
        self.newest = before

    def _run(self, stage: Stage, job: Job, before: Event | None) -> None:
        """One stage of one chunk, once the stage before has let go of it. Nothing more is run of chunks behind one that failed."""
        try:
            if before:
                before.result()
            if self._failure and self._failed_chunk < job.chunk.index:
                raise self._failure
            with self._clock.measure(stage.name, chunk=job.chunk.index):
                stage.run(job)
            if stage is self._stages[-1]:
                self._done(job)
        except BaseException as error:
            if self._failure is None or job.chunk.index < self._failed_chunk:
                self._failure, self._failed_chunk = error, job.chunk.index
            raise
        finally:
            if stage is self._stages[-1]:
                self._free.put(job.buffers)
