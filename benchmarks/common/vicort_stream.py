"""vicort's side of a comparison: a session through its public API, with every stage of every chunk
timed."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vicort.benchmarks.common.spread import Spread, spread
from vicort.benchmarks.common.workload import CHUNK_FRAMES, QUESTIONS, Workload
from vicort.runtime.core import Answer, ChunkEvent, Event, Frame, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session
from vicort.runtime.stream_statistics import STAGES

PAUSE_S = (0.02, 0.12)  # between an answer and the next question, drawn evenly
PATIENCE_S = 60.0  # timeout for frames to be placed


@dataclass(frozen=True)
class Span:
    chunk: int
    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6


class StreamRecorder:
    """Records every span and event of a session; others can wait for chunks to be placed."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = defaultdict(list)
        self.chunks: list[ChunkEvent] = []
        self.placed_ns: list[int] = []
        self.frames = 0  # placed
        self._changed = threading.Condition()

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        self.spans[name].append(Span(args.get("chunk", -1), start_ns, end_ns))

    def event(self, event: Event) -> None:
        if isinstance(event, ChunkEvent):
            with self._changed:
                self.chunks.append(event)
                self.placed_ns.append(time.perf_counter_ns())
                self.frames += event.frames
                self._changed.notify_all()

    def wait_for(self, chunks: int, timeout: float = 600.0) -> None:
        """Waits until `chunks` chunks are placed; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.chunks) >= chunks, timeout):
                raise TimeoutError(
                    f"only {len(self.chunks)} of {chunks} chunks were placed within {timeout:g} s"
                )

    def wait_for_frames(self, frames: int, timeout: float = 600.0) -> int:
        """Waits until `frames` frames are placed, in chunks of any size; returns the time of the
        last, by perf_counter_ns. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.frames >= frames, timeout):
                raise TimeoutError(
                    f"only {self.frames} of {frames} frames were placed within {timeout:g} s"
                )
            return self.placed_ns[-1]


class VicortStream:
    """An endless stream: each call continues where the last one ended."""

    def __init__(
        self,
        engines: EngineSet,
        system: System,
        workload: Workload,
        overlap: bool,
        max_tokens: int = 4,
        also: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> None:
        """also: called with each event after the watch. options: further ones of the session."""
        self.watch = StreamRecorder()
        self.workload = workload
        self.overlap = overlap
        self._also = also
        sampling = Sampling(max_tokens=max_tokens)
        self.session = Session(
            engines,
            system,
            fps="source",
            overlap=overlap,
            sampling=sampling,
            trace=self.watch,
            on_event=self._event,
            **options,
        )
        self._next = 0

    def _event(self, event: Event) -> None:
        self.watch.event(event)
        if self._also:
            self._also(event)

    def push_chunks(self, count: int) -> float:
        """Push `count` chunks from memory as fast as they are taken; wall milliseconds a chunk,
        first frame in to last page placed."""
        frames = self.workload.frames(self._next, count * CHUNK_FRAMES)
        self._next += len(frames)
        goal = len(self.watch.chunks) + count
        start = time.perf_counter_ns()
        for frame in frames:
            self.session.push(frame)
        self.watch.wait_for(goal)
        return (self.watch.placed_ns[goal - 1] - start) / 1e6 / count

    def push_frames(self, count: int) -> float:
        """Push `count` frames, whole chunks, as fast as they are taken; frames a second, first
        frame in to last page placed.

        Raises what a chunk failed with.
        """
        frames, goal = self.next_frames(count), self.watch.frames + count
        start = time.perf_counter_ns()
        self.push(frames)
        try:
            placed = self.watch.wait_for_frames(goal, PATIENCE_S)
        except TimeoutError:
            self.session.finish()  # raises what went wrong, if anything did
            raise
        return count / (placed - start) * 1e9

    def push(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self.session.push(frame)

    def next_frames(self, count: int) -> list[Frame]:
        """The next frames of the stream, not pushed yet."""
        frames = self.workload.frames(self._next, count)
        self._next += count
        return frames

    def ask(self, question: str) -> Answer:
        return self.session.ask(question)

    def ask_all(self, count: int) -> list[Answer]:
        """Asks `count` questions, one after the other, QUESTIONS in turn."""
        return [self.ask(QUESTIONS[number % len(QUESTIONS)]) for number in range(count)]

    def ask_with_pauses(self, count: int) -> tuple[list[Answer], float]:
        """Asks `count` questions with random pauses while another thread pushes frames; returns the
        answers, and the frames a second meanwhile."""
        random = np.random.default_rng(0)
        frames, start, answers = self.watch.frames, time.perf_counter(), list[Answer]()
        for number in range(count):
            time.sleep(random.uniform(*PAUSE_S))
            answers.append(self.ask(QUESTIONS[number % len(QUESTIONS)]))
        return answers, (self.watch.frames - frames) / (time.perf_counter() - start)

    def stage_ms(self, first_chunk: int) -> dict[str, list[float]]:
        """Milliseconds of each stage of each chunk from `first_chunk` on."""
        return {
            stage: [span.ms for span in self.watch.spans[stage] if span.chunk >= first_chunk]
            for stage in STAGES
        }

    def stage_spreads(self, first_chunk: int) -> dict[str, Spread]:
        """The same as spreads."""
        return {stage: spread(ms) for stage, ms in self.stage_ms(first_chunk).items()}

    def stage_ms_a_frame(self, first_chunk: int) -> dict[str, float]:
        """Milliseconds of each stage a frame, from the median chunk, over the chunks placed from
        `first_chunk` on."""
        chunks = self.watch.chunks[first_chunk:]
        frames = sum(chunk.frames for chunk in chunks) / len(chunks)
        return {
            stage: round(statistics.median(times) / frames, 4)
            for stage, times in self.stage_ms(first_chunk).items()
        }

    def close(self) -> None:
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
