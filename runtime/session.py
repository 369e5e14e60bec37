"""A stream that is watched and asked about: the whole runtime behind a handful of verbs.

frame -> sampler -> chunker -> preprocess -> vision -> tokens -> prefill -> pages
question -> snapshot (retrieval, lease) -> prefill of its text -> answer, a token at a time
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from vicort.runtime.answer_run import answer as answer_question
from vicort.runtime.answering import Answerer, Snapshot
from vicort.runtime.core import (
    UNIT_FRAMES,
    Answer,
    Chunk,
    ChunkEvent,
    Event,
    Frame,
    Motion,
    Question,
    Sampling,
    Summary,
)
from vicort.runtime.devices.device import Event as StreamEvent
from vicort.runtime.devices.stage_clock import SpanSink, StageClock
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, VicortError
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import Timeline, text_positions
from vicort.runtime.policies.speech import StreamingEos
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.stages.chunker import Chunker
from vicort.runtime.stages.job import Buffers, Job
from vicort.runtime.stages.pipeline import OverlappedPipeline, Pipeline, SequentialPipeline
from vicort.runtime.stages.speaker import Speaker
from vicort.runtime.stages.stages import make_stages

STAGES = ("preprocess", "vision", "tokens", "prefill")
CHUNKS_IN_FLIGHT = len(STAGES)  # one a stage: more would only make questions wait longer
# with on_lag "drop-oldest": chunks that may wait for a free buffer before the oldest is dropped
WAITING_CHUNKS = 2
ANSWERS_AT_ONCE = 4
REMEMBERED_TTFTS = 10_000  # the latest, over which the summary's percentiles are taken
OnLag = Literal["wait", "drop-oldest"]


@dataclass
class _Asked:
    """A question on its way."""

    question: Question
    answer: Future  # of Answer
    on_token: Callable[[str], None]
    since: int = 0  # perf_counter_ns when it came


class Session:
    """Thread-safe: one thread pushes frames, any may ask."""

    def __init__(
        self,
        engines: EngineSet,
        system: System,
        *,
        fps: float | Fraction | Literal["source"] | None = None,
        overlap: bool = True,
        threads: int = 1,
        on_lag: OnLag = "wait",
        sampling: Sampling | None = None,
        trace: SpanSink | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """fps: frames a second to take, None = what the model was trained with, "source" = every
        frame. threads: of preprocessing.

        on_event gets each ChunkEvent, Answer and Spoken as it happens, from the session's own
        threads, one at a time. Raises MemoryBudgetError if the system's budget does not hold one
        chunk.
        """
        model = engines.manifest.model
        self.system = system
        self.model = model
        self._sampling = sampling or Sampling()
        self._on_lag = on_lag
        self._on_event = on_event or (lambda event: None)
        self._lock, self._event_lock = threading.RLock(), threading.Lock()
        system.drop.check(system.name, model)
        system.retrieval.check(system.name, _chunk_frames(system, model) // UNIT_FRAMES)
        self._device = engines.new_device(overlap)
        self._clock = StageClock(trace)
        self._build(engines, overlap, threads)
        self._sampler = Sampler(None if fps == "source" else model.fps if fps is None else fps)
        self._chunker = Chunker(_chunk_frames(system, model))
        self._drivers: Executor = (
            ThreadPoolExecutor(ANSWERS_AT_ONCE, "answer") if overlap else _InlineExecutor()
        )
        # of frames that were pushed since the last one that was taken
        self._passed: Motion | None = None
        # chunks without buffers yet, with on_lag "drop-oldest"
        self._waiting: deque[Chunk] = deque()
        self._due: list[_Asked] = []  # questions whose time has not come
        self._open: list[Future] = []  # answers that are not given yet, or failed
        self._ttfts: deque[float] = deque(maxlen=REMEMBERED_TTFTS)
        self._now = Fraction(0)  # time of the newest frame seen, sampled or not
        self._frames = self._chunks = self._dropped = self._count = 0
        self._first_ns = self._last_ns = 0
        self._finished = self._closed = False

    @classmethod
    def open(
        cls,
        engines: Path | str | EngineSet,
        system: str | Path = "vicostream",
        *,
        threads: int = 1,
        **options: Any,
    ) -> Session:
        """A session on an engine set, with a system by name or YAML path; threads: CPU threads a
        running stage.

        engines: a folder, or a set that is open already, which several sessions may share.
        """
        opened = (
            engines
            if isinstance(engines, EngineSet)
            else EngineSet.open(Path(engines), threads=threads)
        )
        return cls(opened, load_system(system), threads=threads, **options)

    def _build(self, engines: EngineSet, overlap: bool, threads: int) -> None:
        """Wire the stages, and cache the prompt."""
        model, device = self.model, self._device
        dtype = engines.dtype
        prompt = Prompt(engines.folder, model.video_token)
        self._memory = Memory(device, model, self.system, len(prompt.prefix), dtype, self._clock)
        timeline = Timeline(
            model,
            len(prompt.prefix),
            min(model.max_rows + self._sampling.max_tokens, model.max_position // 8),
        )
        run = LanguageRun(engines.llm, model, device, self._memory.pool)
        stages = make_stages(device, engines, self._memory, timeline, run, threads)
        self._prefill = stages[-1]
        if prompt.prefix:
            self._prefill.stream.run(
                self._cache_prompt, run, np.asarray(prompt.prefix, np.int32)
            ).done()
        buffers = [Buffers(device, model, dtype) for _ in range(CHUNKS_IN_FLIGHT if overlap else 1)]
        self._pipeline: Pipeline = (
            OverlappedPipeline(stages, buffers, self._clock, self._placed)
            if overlap
            else SequentialPipeline(stages, buffers[0], self._clock, self._placed)
        )
        if isinstance(self.system.speaks, StreamingEos):
            self._prefill.speaker = Speaker(
                self.system.speaks,
                device,
                self._prefill.stream,
                run,
                self._memory,
                timeline,
                model,
                prompt,
                self._emit,
            )
        self._answerer = Answerer(
            device, engines, self._memory, timeline, prompt, self._prefill, self._clock
        )

    def _cache_prompt(self, run: LanguageRun, tokens: np.ndarray) -> None:
        positions, stream = text_positions(0, len(tokens)), self._prefill.stream
        out = run(tokens, [], positions, self._memory.ingest_table().slots, stream)
        self._memory.write_prompt(out.k, out.v, positions, stream)

    @property
    def now(self) -> Fraction:
        """Time of the newest frame seen, sampled or not, in seconds."""
        return self._now

    # ---- frames
    # ---------------------------------------------------------------------------------------------------------

    def wants(self, at: Fraction) -> bool:
        """Whether a frame of that time will be taken, so that others need not be decoded to pixels.
        Asks what is due."""
        with self._lock:
            self._see(at)
            return self._sampler.wants(at)

    def push(self, frame: Frame) -> None:
        """Give the stream its next frame; with on_lag "wait" this waits while the pipeline is
        full."""
        if self._on_lag == "wait" and self._chunker.pending == self._chunker.chunk_frames - 1:
            # before the lock is taken, so that questions get in meanwhile
            self._pipeline.wait_for_room()
        with self._lock:
            if self._finished:
                raise VicortError("this stream was finished: open a new session for more frames")
            self._see(frame.time)
            if frame.motion:
                frame = replace(frame, motion=frame.motion.after(self._passed))
            if not self._sampler.accepts(frame.time):
                self._passed = frame.motion
                return
            self._passed = None
            self._first_ns = self._first_ns or time.perf_counter_ns()
            self._frames += 1
            if chunk := self._chunker.add(frame):
                self._send(chunk)

    def finish(self) -> None:
        """End of the stream: a half unit is completed, questions still open are asked, all answers
        are waited for."""
        with self._lock:
            if not self._finished:
                self._ask_due(lambda at: at is not None and at <= self._now)
                if chunk := self._chunker.flush():
                    self._send(chunk)
                self._ask_due(lambda at: True)
                self._send_waiting()
                self._finished = True
        self._pipeline.drain()
        for answer in self._open:
            answer.result()

    # ---- questions
    # ------------------------------------------------------------------------------------------------------

    def submit(self, question: Question, on_token: Callable[[str], None] | None = None) -> Future:
        """Ask without waiting; the future holds the Answer. A time to come, or the end, is waited
        for; one that has passed is now.

        Raises QuestionError for a question that cannot be asked.
        """
        self._answerer.check(question)
        with self._lock:
            self._count += 1
            asked = _Asked(
                replace(question, id=question.id or f"q{self._count}"),
                Future(),
                on_token or (lambda text: None),
            )
            self._open = [
                answer for answer in self._open if not answer.done() or answer.exception()
            ] + [asked.answer]
            if self._finished or (question.at is not None and question.at <= self._now):
                self._launch(asked)
            else:
                self._due.append(asked)
        return asked.answer

    def ask(
        self,
        text: str,
        *,
        at: Fraction | None = None,
        conversation: str | None = None,
        sampling: Sampling | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask now, or at a time to come, and wait for the answer."""
        question = Question(
            text,
            self._now if at is None else at,
            conversation=conversation,
            sampling=sampling or self._sampling,
        )
        return self.submit(question, on_token).result()

    async def ask_stream(
        self,
        text: str,
        *,
        at: Fraction | None = None,
        conversation: str | None = None,
        sampling: Sampling | None = None,
    ) -> AsyncIterator[str]:
        """Ask as `ask` does, and get the pieces of the answer as they come: `async for piece in
        session.ask_stream("…")`.

        The event loop never waits meanwhile; frames are pushed from another thread (`await
        asyncio.to_thread(session.push, frame)`). Leaving early drops the rest, which is made to its
        end behind. Raises what `ask` raises.
        """
        pieces: asyncio.Queue[str | Future] = asyncio.Queue()
        give = partial(_give_to_loop, asyncio.get_running_loop(), pieces)
        question = Question(
            text,
            self._now if at is None else at,
            conversation=conversation,
            sampling=sampling or self._sampling,
        )
        answer = await asyncio.to_thread(self.submit, question, give)
        answer.add_done_callback(give)
        while isinstance(piece := await pieces.get(), str):
            yield piece
        piece.result()

    # ---- the end
    # --------------------------------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """The stream so far."""
        seconds = max(self._last_ns - self._first_ns, 0) / 1e9 if self._last_ns else 0.0
        stage_ms = {stage: self._clock.totals.get(stage, 0) / 1e6 for stage in STAGES}
        return Summary(
            system=self.system.name,
            frames=self._frames,
            dropped=self._dropped,
            chunks=self._chunks,
            seconds=seconds,
            fps=self._frames / seconds if seconds else 0.0,
            stage_ms=stage_ms,
            overlap=sum(stage_ms.values()) / 1e3 / seconds if seconds else 0.0,
            ttft_ms=percentiles(self._ttfts),
            pages=self._memory.pages_in_use(),
            moved_mb=self._memory.bytes_moved / 1e6,
            reruns=self._memory.reruns,
            peak_rss_mb=_peak_rss_mb(),
        )

    def cancel(self) -> None:
        """Stop now: what is placed stays counted, what is not is lost. Open answers fail."""
        self._finished = self._closed = True
        self._pipeline.close()
        self._memory.close()
        self._drivers.shutdown(wait=False, cancel_futures=True)
        self._device.close()
        for answer in self._open:
            with suppress(InvalidStateError):  # given, or failed by itself
                answer.set_exception(
                    VicortError("the session was closed before the answer: open a new one")
                )

    def close(self) -> None:
        """Let go of threads and memory; open work is dropped."""
        if not self._closed:
            self.cancel()
            # engines and pools are large, and lie in reference cycles that might otherwise stay for
            # long
            gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ---- behind the verbs
    # -----------------------------------------------------------------------------------------------

    def _see(self, at: Fraction) -> None:
        """Time has come to `at`: questions due before are asked first, so that they see what was
        complete then."""
        self._ask_due(lambda due: due is not None and due < at)
        self._now = max(self._now, at)

    def _ask_due(self, is_due: Callable[[Fraction | None], bool]) -> None:
        now, self._due = (
            [a for a in self._due if is_due(a.question.at)],
            [a for a in self._due if not is_due(a.question.at)],
        )
        for asked in sorted(now, key=lambda a: a.question.at or self._now):
            self._launch(asked)

    def _send(self, chunk: Chunk) -> None:
        """Into the pipeline; if it is full, wait or let the oldest waiting chunk go, as the lag
        policy says."""
        if self._on_lag == "wait":
            self._pipeline.enter(chunk)
            return
        self._waiting.append(chunk)
        while self._waiting and self._pipeline.try_enter(self._waiting[0]):
            self._waiting.popleft()
        if len(self._waiting) > WAITING_CHUNKS:
            lost = self._waiting.popleft()
            self._dropped += len(lost.frames) - lost.repeated

    def _send_waiting(self) -> None:
        while self._waiting:
            self._pipeline.enter(self._waiting.popleft())

    def _launch(self, asked: _Asked) -> None:
        """Cut the chunk being filled, and put the question's snapshot behind it, in the order of
        the stream."""
        asked.since = time.perf_counter_ns()
        if asked.question.at is None or (asked.question.at < self._now and not self._finished):
            asked.question = replace(asked.question, at=self._now)
        if chunk := self._chunker.cut():
            self._send(chunk)
        self._send_waiting()
        if self.system.text.joins:
            self._prefill.stream.run(self._answer_in_stream, asked, self._pipeline.newest)
            return
        before = self._answerer.join(asked.question, asked.answer)
        snapshot = self._prefill.stream.run(
            self._snapshot, asked.question, self._pipeline.newest
        )
        self._drivers.submit(self._drive, asked, snapshot.enqueued, before)

    def _snapshot(self, question: Question, newest_chunk: StreamEvent | None) -> Snapshot:
        if newest_chunk:
            self._prefill.stream.wait(newest_chunk)
        return self._answerer.snapshot(question)

    def _answer_in_stream(self, asked: _Asked, newest_chunk: StreamEvent | None) -> None:
        """One answer in the order of the stream, of which it becomes a part: chunks wait for it."""
        self._drive(asked, lambda: self._snapshot(asked.question, newest_chunk), None)

    def _drive(
        self, asked: _Asked, snapshot: Callable[[], Snapshot], before: Future | None
    ) -> None:
        """One answer from its snapshot to its event; on a thread of its own, unless it joins the
        stream."""
        try:
            taken = snapshot()
            if before:
                before.exception()  # wait: its turn comes first, whether it succeeds or not
            answer = answer_question(
                self._answerer, asked.question, taken, asked.since, asked.on_token
            )
            self._ttfts.append(answer.ttft_ms)
            self._emit(answer)
            asked.answer.set_result(answer)
        except BaseException as error:  # noqa: BLE001 - handed on to whoever waits for the answer
            asked.answer.set_exception(error)

    def _placed(self, job: Job) -> None:
        """A chunk is through."""
        self._chunks += 1
        self._last_ns = time.perf_counter_ns()
        chunk = job.chunk
        self._emit(
            ChunkEvent(
                index=chunk.index,
                frames=len(chunk.frames) - chunk.repeated,
                start=chunk.start,
                end=chunk.end,
                tokens=chunk.units * self.model.unit_tokens,
                kept=job.kept,
                wall_ms=(self._last_ns - job.submitted) / 1e6,
            )
        )

    def _emit(self, event: Event) -> None:
        with self._event_lock:
            self._on_event(event)


class _InlineExecutor(Executor):
    """Runs work at once, in its caller."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        done: Future = Future()
        done.set_result(work(*args, **kwargs))
        return done


def _chunk_frames(system: System, model: ModelSpec) -> int:
    """Frames in a chunk. Raises ConfigError for more than the engines take."""
    if system.chunk_frames and system.chunk_frames > model.chunk_frames:
        raise ConfigError(
            f"system {system.name} takes chunks of {system.chunk_frames} frames, these engines "
            f"{model.chunk_frames}: set chunk.frames in "
            f"its YAML file to at most that, or rebuild with --chunk-frames {system.chunk_frames}"
        )
    return system.chunk_frames or model.chunk_frames


def _give_to_loop(
    loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue, piece: str | Future
) -> None:
    with suppress(RuntimeError):  # the loop has ended: nobody listens
        loop.call_soon_threadsafe(pieces.put_nowait, piece)


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99 of some milliseconds; None of none."""
    if not values:
        return None
    return {f"p{level}": float(np.percentile(values, level)) for level in (50, 95, 99)}


def _peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB of 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
