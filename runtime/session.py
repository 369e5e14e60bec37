"""A stream that is watched and asked about: the whole runtime as a few methods.

frame -> sampler -> chunker -> preprocess -> vision -> tokens -> prefill -> pages
question -> snapshot (retrieval, lease) -> prefill of its text -> answer, a token at a time
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from vicort.runtime.answer_run import answer as answer_question
from vicort.runtime.answering import Snapshot
from vicort.runtime.assembly import assemble, check_system, chunk_frames
from vicort.runtime.core import (
    UNIT_FRAMES,
    Answer,
    Event,
    Frame,
    Question,
    Sampling,
    Summary,
)
from vicort.runtime.devices.machine_cores import checked_threads
from vicort.runtime.devices.preprocess import import_dali
from vicort.runtime.devices.stage_clock import SpanSink, StageClock
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import VicortError
from vicort.runtime.event_emitter import EventEmitter
from vicort.runtime.language.generation_config import read_generation
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.memory.memory import Memory
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.stages.chunker import Chunker
from vicort.runtime.stages.lag_policy import OnLag, lag_policy
from vicort.runtime.stages.pipeline import Pipeline
from vicort.runtime.stream_statistics import StreamStatistics

ANSWERS_AT_ONCE = 4


@dataclass
class _Asked:
    """A question that waits for its answer."""

    question: Question
    answer: Future  # of Answer
    on_token: Callable[[str], None]
    since: int = 0  # perf_counter_ns when it came


@dataclass(frozen=True)
class Inspection:
    """The parts of a session, for tests and measurements. To be read, not to be changed."""

    prompt: Prompt
    memory: Memory
    pipeline: Pipeline
    chunk_frames: int


class Session:
    """Thread-safe: one thread pushes frames, any thread may ask."""

    def step(self, frame: Frame) -> None:
        """frame -> sampler -> chunker -> preprocess -> vision -> tokens -> prefill -> pages"""
        self._advance(frame.time)
        if sampled := self._sampler.sample(frame):
            self._statistics.frame_entered()
            if chunk := self._chunker.add(sampled):
                self._lag.enter(chunk)

    def __init__(
        self,
        engines: EngineSet,
        system: System,
        *,
        fps: float | Fraction | Literal["source"] | None = None,
        overlap: bool = True,
        threads: int | None = None,
        on_lag: OnLag = "wait",
        sampling: Sampling | None = None,
        trace: SpanSink | None = None,
        on_event: Callable[[Event], None] | None = None,
        memory: MemoryRequest = MemoryRequest(),  # noqa: B008 (frozen)
        system_prompt: str | None = None,
    ) -> None:
        """Allocate all memory, build the stages, and cache the prompt.

        fps: frames a second to take, None = the rate that the model was trained with, "source" =
        every frame. threads: of preprocessing, None = all that the process may use. on_event gets
        each ChunkEvent, Answer and Spoken as it happens, from the session's own threads, one at a
        time. memory: budgets that replace the system's. system_prompt: None = the chat template's
        own. Raises MemoryBudgetError if the budget does not hold one chunk, EngineError for a
        damaged generation_config.json.
        """
        model = engines.manifest.model
        self.model = model
        self._generation = read_generation(engines.folder)
        self._sampling = (sampling or Sampling()).over(self._generation)
        self._lock = threading.RLock()
        self._chunk_frames = chunk_frames(system, model)
        system.drop.check(system.name, model)
        system.retrieval.check(system.name, self._chunk_frames // UNIT_FRAMES)
        self._clock = StageClock(trace)
        self._statistics = StreamStatistics()
        self._events = EventEmitter(on_event, self._statistics)
        parts = assemble(
            engines,
            system,
            self._clock,
            request=memory,
            system_prompt=system_prompt,
            overlap=overlap,
            threads=checked_threads(threads),
            answer_tokens=self._sampling.max_tokens,
            on_chunk=self._events.chunk_left,
            on_spoken=self._events.emit,
        )
        self.fitted = parts.fitted
        self.system = parts.fitted.system
        self._device = parts.device
        self._prompt = parts.prompt
        self._memory = parts.memory
        self._prefill = parts.prefill
        self._pipeline = parts.pipeline
        self._answerer = parts.answerer
        # frames a second that are taken; None: all, whatever their rate
        self.rate = None if fps == "source" else float(model.fps if fps is None else fps)
        self._sampler = Sampler(None if fps == "source" else model.fps if fps is None else fps)
        self._chunker = Chunker(self._chunk_frames, model.grid)
        self._lag = lag_policy(on_lag, self._pipeline)
        self._drivers: Executor = (
            ThreadPoolExecutor(ANSWERS_AT_ONCE, "answer") if overlap else _InlineExecutor()
        )
        self._due: list[_Asked] = []  # questions whose time has not come
        self._open: list[Future] = []  # answers that are not given yet, or failed
        self._asked = 0  # questions so far, which gives those without an id one
        self._now = Fraction(0)  # time of the newest frame seen, sampled or not
        self._finished = False
        self._closed = False

    @classmethod
    def open(
        cls,
        engines: Path | str | EngineSet,
        system: str | Path | System = "vicostream",
        *,
        threads: int | None = None,
        memory: MemoryRequest = MemoryRequest(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> Session:
        """Open a session.

        engines: the folder of an engine set, or an open set, which several sessions may share.
        system: a name, the path of a YAML file, or a system. threads: CPU threads of each running
        stage, None = all that the process may use. memory: budgets that replace the system's. What
        can be refused is refused before engines are loaded.
        """
        chosen = system if isinstance(system, System) else load_system(system)
        if not isinstance(engines, EngineSet):
            folder = Path(engines)
            engines = EngineSet.open(
                folder,
                threads=threads,
                check=lambda manifest, machine: check_system(
                    chosen, folder, manifest, machine, memory, options.get("system_prompt")
                ),
                meanwhile=import_dali,
            )
        return cls(engines, chosen, threads=threads, memory=memory, **options)

    @property
    def now(self) -> Fraction:
        """Time of the newest frame seen, sampled or not, in seconds."""
        return self._now

    # ---- frames ----

    def wants(self, at: Fraction) -> bool:
        """Whether a frame of that time will be taken; others need not be converted to pixels.

        Asks the questions that are due.
        """
        with self._lock:
            self._advance(at)
            return self._sampler.wants(at)

    def push(self, frame: Frame) -> None:
        """Give the stream its next frame; with on_lag "wait", wait while the pipeline is full."""
        if self._sampler.wants(frame.time) and self._chunker.closes(frame):
            self._lag.wait_for_room()  # before the lock is taken, so that questions are not held up
        with self._lock:
            if self._finished:
                raise VicortError("this stream was finished: open a new session for more frames")
            self.step(frame)

    def finish(self) -> None:
        """End the stream: complete a half unit, ask the questions that are left, and wait for all
        answers."""
        with self._lock:
            if not self._finished:
                self._ask_due(lambda at: at is not None and at <= self._now)
                if chunk := self._chunker.flush():
                    self._lag.enter(chunk)
                self._ask_due(lambda at: True)
                self._lag.flush()
                self._finished = True
        self._pipeline.drain()
        for answer in self._open:
            answer.result()

    def change_lag_policy(self, on_lag: OnLag) -> None:
        """From now on, use another policy for frames that come faster than they are taken."""
        with self._lock:
            self._lag.flush()
            dropped = self._lag.dropped
            self._lag = lag_policy(on_lag, self._pipeline)
            self._lag.dropped = dropped

    # ---- questions ----

    def submit(self, question: Question, on_token: Callable[[str], None] | None = None) -> Future:
        """Ask without waiting; the future holds the Answer.

        A question is asked at its time, or at the end if it has none; a time that has passed means
        now. Raises QuestionError for a question that cannot be asked.
        """
        question = replace(question, sampling=question.sampling.over(self._generation))
        self._answerer.check(question)
        with self._lock:
            self._asked += 1
            question = replace(question, id=question.id or f"q{self._asked}")
            asked = _Asked(question, Future(), on_token or (lambda text: None))
            running = [each for each in self._open if not each.done() or each.exception()]
            self._open = [*running, asked.answer]
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
        """Ask now, or at a later time, and wait for the answer."""
        return self.submit(self._question(text, at, conversation, sampling), on_token).result()

    async def ask_stream(
        self,
        text: str,
        *,
        at: Fraction | None = None,
        conversation: str | None = None,
        sampling: Sampling | None = None,
    ) -> AsyncIterator[str]:
        """Ask as `ask` does, and yield the pieces of the answer as they come:
        `async for piece in session.ask_stream("…")`.

        The event loop is not blocked; push frames from another thread
        (`await asyncio.to_thread(session.push, frame)`). If the caller stops early, the answer is
        still generated in the background and discarded. Raises what `ask` raises.
        """
        pieces: asyncio.Queue[str | Future] = asyncio.Queue()
        put = partial(_put_from_thread, asyncio.get_running_loop(), pieces)
        question = self._question(text, at, conversation, sampling)
        answer = await asyncio.to_thread(self.submit, question, put)
        answer.add_done_callback(put)
        while isinstance(piece := await pieces.get(), str):
            yield piece
        piece.result()

    def unknown_words(self, text: str) -> list[str]:
        """The words of a question that the model cannot read, once each; models with a tokenizer
        of bytes, as published ones have, read all."""
        return self._prompt.unknown_words(text)

    # ---- the end ----

    def summary(self) -> Summary:
        """Counts and times of the stream so far."""
        return self._statistics.summary(self.system, self._lag.dropped, self._clock, self._memory)

    def inspect(self) -> Inspection:
        """The parts of the session, for tests and measurements."""
        return Inspection(self._prompt, self._memory, self._pipeline, self._chunk_frames)

    def cancel(self) -> None:
        """Stop now: chunks in flight are lost, and open answers fail."""
        self._finished = True
        self._closed = True
        self._pipeline.close()
        self._memory.close()
        self._drivers.shutdown(wait=False, cancel_futures=True)
        self._device.close()
        for answer in self._open:
            with suppress(InvalidStateError):  # it has been given, or has failed by itself
                answer.set_exception(
                    VicortError("the session was closed before the answer: open a new one")
                )

    def close(self) -> None:
        """Release threads and memory; work in flight is dropped."""
        if not self._closed:
            self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ---- how a question gets in between the chunks ----

    def _question(
        self,
        text: str,
        at: Fraction | None,
        conversation: str | None,
        sampling: Sampling | None,
    ) -> Question:
        when = self._now if at is None else at
        return Question(text, when, conversation=conversation, sampling=sampling or self._sampling)

    def _advance(self, at: Fraction) -> None:
        """Set the stream's time to `at`, after asking the questions that were due before.

        So these see what was complete then.
        """
        self._ask_due(lambda due: due is not None and due < at)
        self._now = max(self._now, at)

    def _ask_due(self, is_due: Callable[[Fraction | None], bool]) -> None:
        due = [asked for asked in self._due if is_due(asked.question.at)]
        self._due = [asked for asked in self._due if not is_due(asked.question.at)]
        for asked in sorted(due, key=lambda asked: asked.question.at or self._now):
            self._launch(asked)

    def _launch(self, asked: _Asked) -> None:
        """Cut the chunk that is being filled, and take the question's snapshot after it, in the
        order of the stream."""
        asked.since = time.perf_counter_ns()
        at = asked.question.at
        if at is None or (at < self._now and not self._finished):
            asked.question = replace(asked.question, at=self._now)
        if chunk := self._chunker.cut():
            self._lag.enter(chunk)
        self._lag.flush()
        newest = self._pipeline.newest
        take = partial(self._answerer.snapshot_in_stream, asked.question, newest)
        if self.system.text.joins:  # the answer becomes part of the stream: chunks wait for it
            self._prefill.stream.run(self._answer, asked, take, None)
            return
        before = self._answerer.enter_conversation(asked.question, asked.answer)
        snapshot = self._prefill.stream.run(take)
        self._drivers.submit(self._answer, asked, snapshot.enqueued, before)

    def _answer(
        self, asked: _Asked, snapshot: Callable[[], Snapshot], before: Future | None
    ) -> None:
        """One answer from its snapshot to its event.

        before: the answer to the question before in the same conversation. Runs on a thread of the
        drivers, or in the prefill stream's own work where the answer becomes part of the stream.
        """
        try:
            taken = snapshot()
            if before:
                before.exception()  # wait until it has ended, with success or not
            answer = answer_question(
                self._answerer, asked.question, taken, asked.since, asked.on_token
            )
            self._statistics.answered(answer.ttft_ms)
            self._events.emit(answer)
            asked.answer.set_result(answer)
        except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
            asked.answer.set_exception(error)


class _InlineExecutor(Executor):
    """Runs work in the thread that submits it."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        done: Future = Future()
        done.set_result(work(*args, **kwargs))
        return done


def _put_from_thread(
    loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue, piece: str | Future
) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(pieces.put_nowait, piece)
