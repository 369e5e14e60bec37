"""A stream that is watched and asked about: the whole runtime as a few methods.

frame -> sampler -> chunker -> preprocess -> vision -> tokens -> prefill -> pages
question -> snapshot (retrieval, lease) -> prefill of its text -> answer, a token at a time
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

from vicort.runtime.answer_pieces import AnswerPieces
from vicort.runtime.answer_threads import answer_threads
from vicort.runtime.argument_kinds import checked_path
from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.assembly import (
    Parts,
    assemble,
    build_intake,
    check_policies,
    check_system,
    sampling_rate,
)
from vicort.runtime.callback_threads import CallbackThreads
from vicort.runtime.core import (
    Answer,
    Constraint,
    Event,
    Frame,
    Freshness,
    Question,
    Sampling,
    Summary,
    check_picture,
    checked_frame_time,
)
from vicort.runtime.devices.forked_children import leave_to_parent
from vicort.runtime.devices.machine_cores import checked_threads
from vicort.runtime.devices.machine_memory import give_back_memory
from vicort.runtime.devices.preprocess import import_dali
from vicort.runtime.devices.stage_clock import SpanSink, StageClock
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import DeviceError, VicortError
from vicort.runtime.event_emitter import EventEmitter
from vicort.runtime.known_failures import KnownFailures, known_device_errors
from vicort.runtime.language.generation_config import read_generation
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.memory.memory import Memory
from vicort.runtime.owning_process import OwningProcess
from vicort.runtime.policies.system import DEFAULT_SYSTEM, System, load_system
from vicort.runtime.question_launcher import QuestionLauncher
from vicort.runtime.question_queue import (
    MAX_OPEN_QUESTIONS,
    QuestionQueue,
    closed,
    with_exact_times,
)
from vicort.runtime.session_arguments import (
    check_frame,
    check_freshness,
    check_memory,
    check_question,
    check_session,
    check_shared_vision,
    check_words,
)
from vicort.runtime.sources.sampler import known_rate
from vicort.runtime.sources.source import Ending, Wanted
from vicort.runtime.stages.lag_policy import OnLag
from vicort.runtime.stages.pipeline import Pipeline
from vicort.runtime.stages.shared_vision import SharedVision
from vicort.runtime.stream_health import StreamHealth
from vicort.runtime.stream_statistics import StreamStatistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inspection:
    """The parts of a session, for tests and measurements. To be read, not to be changed."""

    prompt: Prompt
    memory: Memory
    pipeline: Pipeline
    chunk_frames: int


class Session:
    """Thread-safe: one thread pushes frames, any thread may ask.

    A future that `submit` returns belongs to its asker: cancelled or failed, it changes nothing for
    other questions, for later turns of its conversation or for the stream. on_event, on_token and
    callbacks of futures may call `submit`, `summary` and `close`; what waits raises VicortError
    there. A session belongs to the process that opened it: in a forked child its methods raise
    VicortError, and `close` does nothing.
    """

    def step(self, frame: Frame) -> None:
        """frame -> sampler -> chunker -> preprocess -> vision -> tokens -> prefill -> pages

        Before it go the frame that stayed on the screen until now, and the questions that are due.
        """
        self._intake.take_stayed(frame.time)
        self._advance(frame.time)
        self._intake.take(frame)

    def __init__(
        self,
        engines: EngineSet,
        system: System,
        *,
        fps: float | Fraction | Literal["source"] | None = None,
        overlap: bool = True,
        threads: int | None = None,
        on_lag: OnLag = "wait",
        freshness: Freshness = "complete",
        shared_vision: SharedVision | None = None,
        sampling: Sampling | None = None,
        trace: SpanSink | None = None,
        on_event: Callable[[Event], None] | None = None,
        memory: MemoryRequest = MemoryRequest(),  # noqa: B008 (frozen)
        system_prompt: str | None = None,
        max_questions: int = MAX_OPEN_QUESTIONS,
    ) -> None:
        """Allocate all memory, build the stages, and cache the prompt.

        fps: frames a second to take, None = the system's, which is that of the model's training
        where it names none, "source" = every frame. threads: of preprocessing, None = all that the
        process may use. freshness: what a question sees: "complete" = every frame until its time,
        for which it waits until they are in memory; "now" = what is in memory already, for which it
        waits for no chunk but the one that is being written. shared_vision: of these engines, whose
        other sessions' units are encoded in the same runs. on_event gets each ChunkEvent, Answer
        and Spoken as it happens, from the session's own threads, one at a time; an error that it
        raises is logged once for each kind, counted in the summary, and does not end the stream.
        memory: budgets that replace the system's. system_prompt: None = the chat template's own.
        max_questions: that may wait for their answers. Raises MemoryBudgetError if the budget does
        not hold one chunk, EngineError for a damaged generation_config.json.
        """
        check_session(system, fps, sampling, trace, on_event, memory)
        check_freshness(freshness)
        check_shared_vision(shared_vision, engines)
        model = engines.manifest.model
        rate = sampling_rate(fps, system, model)
        self.model = model
        self._generation = read_generation(engines.folder)
        self._sampling = (sampling or Sampling()).over(self._generation)
        self._process = OwningProcess()
        leave_to_parent(self)
        self._lock = threading.Lock()  # held by whoever moves the stream
        check_policies(system, model)
        self._clock = StageClock(trace)
        self._statistics = StreamStatistics()
        self._callbacks = CallbackThreads()
        self._known = KnownFailures()
        self._events = EventEmitter(on_event, self._statistics, self._callbacks)
        self._questions = QuestionQueue(max_questions)
        self._asked = itertools.count(1)  # gives questions without an id one
        self._finished = False
        self._closed = False
        parts = assemble(
            engines,
            system,
            self._clock,
            fps=rate,
            request=memory,
            system_prompt=system_prompt,
            overlap=overlap,
            cut_in=freshness == "now",
            shared_vision=shared_vision,
            threads=checked_threads(threads),
            answer_tokens=self._sampling.max_tokens,
            on_chunk=self._events.chunk_left,
            on_failure=self._questions.fail,
            on_spoken=self._events.emit,
        )
        self._connect(parts, rate, on_lag, freshness, overlap)
        # The last attribute is freed last: then what the others held goes back to the system.
        self._freed_last = _FreedLast()
        weakref.finalize(self._freed_last, give_back_memory).atexit = False

    def _connect(
        self,
        parts: Parts,
        rate: Fraction | None,
        on_lag: OnLag,
        freshness: Freshness,
        overlap: bool,
    ) -> None:
        """Put the parts to work: build the ways of frames and of questions to them."""
        self.fitted = parts.fitted
        self.system = parts.fitted.system
        self._device = parts.device
        self._prompt = parts.prompt
        self._memory = parts.memory
        self._pipeline = parts.pipeline
        self._answerer = parts.answerer
        # frames a second that are taken; None: all, whatever their rate
        self.rate = None if rate is None else float(rate)
        self._health = StreamHealth(self._pipeline, self._device, self._questions)
        self._intake = build_intake(parts, rate, on_lag, self._statistics)
        self._drivers = answer_threads(overlap)
        self._launcher = QuestionLauncher(
            self._answerer,
            parts.prefill,
            self._intake,
            self._questions,
            self._health,
            self._events,
            self._drivers,
            freshness,
        )

    @classmethod
    def open(
        cls,
        engines: Path | str | EngineSet,
        system: str | Path | System = DEFAULT_SYSTEM,
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
        check_memory(memory)
        if not isinstance(engines, EngineSet):
            folder = checked_path(engines, "the engine set", "its folder, or an open EngineSet")
            engines = EngineSet.open(
                folder,
                threads=threads,
                check=lambda manifest, machine: check_system(
                    chosen,
                    folder,
                    manifest,
                    machine,
                    memory,
                    options.get("system_prompt"),
                    known_rate(options.get("fps")),
                ),
                meanwhile=import_dali,
            )
        if doubt := chosen.speaks.doubt(chosen.name, engines.manifest.build_command):
            logger.warning(doubt)
        return cls(engines, chosen, threads=threads, memory=memory, **options)

    @property
    def now(self) -> Fraction:
        """Time of the newest frame seen, sampled or not, in seconds."""
        return self._questions.now

    # ---- frames ----

    @known_device_errors
    def wants(self, at: Fraction) -> Wanted:
        """Whether a frame of that time will be taken; others need not be converted to pixels.

        BOTH means that the frame before it is taken, too, which was not wanted when it came: it
        stays on the screen where another one was due. Push it first, or ask again if it cannot be
        had. Asks the questions that are due, unless the frame before is to come first.
        """
        at = checked_frame_time(at)
        with self._moving("wants"):
            self._health.check()
            self._intake.take_stayed(at)
            if self._intake.wants_both(at):
                return Wanted.BOTH
            self._advance(at)
            return Wanted(self._intake.wants(at))

    @known_device_errors
    def push(self, frame: Frame) -> None:
        """Give the stream its next frame; with on_lag "wait", wait while the pipeline is full. A
        frame that is not later than the one before is left out, and counted in the summary.

        Raises VicortError after `finish`, SessionClosed after `close`, ConfigError for a time or a
        picture that is none, what an earlier chunk failed with, and DeviceError of a device that is
        lost.
        """
        self._check_usable("push")
        check_frame(frame)
        at = checked_frame_time(frame.time)
        if at is not frame.time:
            frame = replace(frame, time=at)
        check_picture(frame.image)
        self._intake.wait_for_room(frame)  # before the lock is taken
        with self._moving("push"):
            if self._finished:
                raise VicortError("this stream was finished: open a new session for more frames")
            self._health.check()
            self.step(frame)

    @known_device_errors
    def settle(self) -> None:
        """Wait until every chunk that is full is in memory, and `on_event` has returned from its
        ChunkEvent.

        Raises what a chunk failed with, and SessionClosed after `close`.
        """
        self._check_usable("settle")
        self._pipeline.drain()

    @known_device_errors
    def finish(self, ending: Ending | None = None) -> None:
        """End the stream: complete a half unit, ask the questions that are left, and wait until no
        question is open.

        ending: of the source, whose last frame is seen where another one was due before its end.
        Without it, and after frames that were all pushed, the last one stays until the last
        question.

        Raises what a chunk failed with, DeviceError of a device that is lost, and SessionClosed
        after `close`. What became of an answer is known by its future alone.
        """
        if ending and ending.frame and not self._finished:
            self.push(ending.frame)
        with self._moving("finish"):
            if not self._finished:
                self._launcher.launch_all(self._questions.take_due())
                left = self._questions.finish()
                try:
                    self._intake.end(self._last_moment(left, ending))
                except BaseException as error:  # nobody would ask what is left
                    self._launcher.give_up(left, error)
                    raise
                # from here on there is nothing newer to wait for
                self._launcher.freshness = "complete"
                self._launcher.launch_all(left)
                self._intake.flush()
                self._finished = True
        self._pipeline.drain()
        self._health.check_device()
        self._questions.wait_ended()
        if self._closed:
            raise closed()

    def _last_moment(self, left: Sequence[AskedQuestion], ending: Ending | None) -> Fraction:
        """Until when the last frame stays on the screen for what is left to ask."""
        asked = [each.question.at for each in left if each.question.at is not None]
        return max(self.now, *asked, ending.time if ending else self.now)

    @known_device_errors
    def change_lag_policy(self, on_lag: OnLag) -> None:
        """From now on, use another policy for frames that come faster than they are taken."""
        with self._moving("change_lag_policy"):
            self._intake.change_lag_policy(on_lag)

    # ---- questions ----

    def submit(
        self, question: Question, on_token: Callable[[str], None] | None = None
    ) -> Future[Answer]:
        """Ask without waiting for the answer, which the future holds; waits at most while the
        pipeline is full.

        A question is asked at its time, or at the end if it has none; a time that has passed means
        now, and is `requested` of the answer. on_token gets each piece of the answer; what it
        raises becomes the answer's failure. Cancelling the future removes a question that has not
        begun, and ends one that runs at its next token. A chunk that fails, or a device that is
        lost, ends the stream: the futures of all open questions, and of later ones, fail with its
        error. Raises QuestionError for a question that cannot be asked, or if max_questions are
        open, and SessionClosed after `close`.
        """
        return self._submit([self._checked(question, on_token)], on_token)[0]

    def submit_all(self, questions: Sequence[Question]) -> list[Future[Answer]]:
        """As `submit`, of several questions: what is asked about one moment is asked about the same
        frames, and questions with choices run as one batch.

        Raises what `submit` raises; then none of them is asked.
        """
        return self._submit([self._checked(question, None) for question in questions], None)

    def _submit(
        self, questions: Sequence[Question], on_token: Callable[[str], None] | None
    ) -> list[Future[Answer]]:
        answers = self._enter(questions, on_token)
        if self._callbacks.here:  # the stream may have to wait for what this thread does next
            self._drivers.submit(self._launch_ready)
        else:
            self._launch_ready()
        return answers

    def ask(
        self,
        text: str,
        *,
        at: Fraction | None = None,
        since: Fraction | None = None,
        until: Fraction | None = None,
        conversation: str | None = None,
        sampling: Sampling | None = None,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask now, or at a later time, and wait for the answer.

        since, until: seconds; of the stream only temporal units that overlap [since, until] are
        read, and None is no limit. Where nothing is remembered of that time, `read` of the answer
        is empty. constraint: what the answer may be. logprobs: report each token, and this many
        others in its place, 0 to 20. Raises what `submit` raises, and what the answer failed with.
        """
        self._callbacks.refuse("ask")
        question = self._asked_now(
            text,
            at,
            sampling,
            conversation=conversation,
            since=since,
            until=until,
            constraint=constraint,
            logprobs=logprobs,
        )
        return self.submit(question, on_token).result()

    async def ask_stream(
        self,
        text: str,
        *,
        at: Fraction | None = None,
        since: Fraction | None = None,
        until: Fraction | None = None,
        conversation: str | None = None,
        sampling: Sampling | None = None,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
    ) -> AsyncIterator[str]:
        """Ask as `ask` does, and yield the pieces of the answer as they come:
        `async for piece in session.ask_stream("…")`.

        The event loop is not blocked; push frames from another thread
        (`await asyncio.to_thread(session.push, frame)`). If the caller stops early, so does the
        answer. Raises what `ask` raises.
        """
        import asyncio  # late: it takes as long as half of NumPy

        pieces = AnswerPieces()
        question = self._asked_now(
            text,
            at,
            sampling,
            conversation=conversation,
            since=since,
            until=until,
            constraint=constraint,
            logprobs=logprobs,
        )
        (answer,) = self._enter([self._checked(question, pieces.put)], pieces.put)
        try:
            await asyncio.to_thread(self._launch_ready)
            answer.add_done_callback(pieces.put)
            while isinstance(piece := await pieces.get(), str):
                yield piece
            piece.result()
        finally:
            answer.cancel()  # no effect on an answer that was given

    def unknown_words(self, text: str) -> list[str]:
        """The words of a question that the model cannot read, once each; models with a tokenizer
        of bytes, as published ones have, read all. Raises QuestionError for what is no text."""
        check_words(text)
        return self._prompt.unknown_words(text)

    # ---- the end ----

    def summary(self) -> Summary:
        """Counts and times of the stream so far."""
        return self._statistics.summary(
            self.system, self._intake.dropped, self._clock, self._memory
        )

    def inspect(self) -> Inspection:
        """The parts of the session, for tests and measurements."""
        return Inspection(self._prompt, self._memory, self._pipeline, self._intake.chunk_frames)

    def cancel(self) -> None:
        """Stop now: chunks in flight are lost, and open answers fail."""
        self.close()

    def close(self) -> None:
        """Release threads and memory; work in flight is dropped, and open answers fail. Waits for
        the work and the callbacks that run, unless it is called from a callback.

        Raises DeviceError if the device has failed and no method has raised that yet, nor an answer
        failed with it. The session is closed all the same.
        """
        if self._closed or not self._process.here:
            return
        self._finished = True
        self._closed = True
        self._questions.close()
        self._pipeline.close()
        self._memory.close()
        self._drivers.shutdown(wait=False, cancel_futures=True)
        try:
            self._device.close()
        except DeviceError:
            if not self._known.of_device:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._known.note(error)  # of a source on the same GPU, say
        self.close()

    # ---- what the methods share ----

    def _asked_now(
        self, text: str, at: Fraction | None, sampling: Sampling | None, **fields: Any
    ) -> Question:
        """A question about now, unless it has a time, with the session's sampling, unless it has
        its own."""
        when = self.now if at is None else at
        own = self._sampling if sampling is None else sampling
        return Question(text, when, sampling=own, **fields)

    def _checked(self, question: Question, on_token: Callable[[str], None] | None) -> Question:
        """A question that can be asked, with what it leaves to the session."""
        self._check_open("submit")
        check_question(question, on_token)
        question = replace(
            with_exact_times(question),
            id=question.id or f"q{next(self._asked)}",
            sampling=question.sampling.over(self._generation),
        )
        self._answerer.check(question)
        return self._answerer.sized(question)

    def _enter(
        self, questions: Sequence[Question], on_token: Callable[[str], None] | None
    ) -> list[Future[Answer]]:
        """Queue checked questions, all or none, without waiting for anything."""
        answers: list[Future[Answer]] = [Future() for _ in questions]
        asked = [
            AskedQuestion(question, answer, on_token, self._callbacks, self._known)
            for question, answer in zip(questions, answers, strict=True)
        ]
        self._questions.add_all(list(zip(asked, answers, strict=True)))
        return answers

    def _check_open(self, method: str) -> None:
        self._process.check(method)
        if self._closed:
            raise closed()

    def _check_usable(self, method: str) -> None:
        """Raises VicortError where a method that may wait must not be called."""
        self._check_open(method)
        self._callbacks.refuse(method)

    @contextmanager
    def _moving(self, method: str) -> Iterator[None]:
        """Only one thread moves the stream. At its end it also asks the questions that came
        meanwhile, whose askers do not wait for the lock."""
        self._check_usable(method)
        try:
            with self._lock:
                yield
        finally:
            self._launch_ready()

    def _launch_ready(self) -> None:
        """Ask the questions that are ready, unless another thread moves the stream, which will."""
        while self._questions.has_ready and self._lock.acquire(blocking=False):
            try:
                self._launcher.launch_all(self._questions.take_ready())
            finally:
                self._lock.release()

    def _advance(self, at: Fraction) -> None:
        """Set the stream's time to `at`, after asking the questions that were due before.

        So these see what was complete then.
        """
        self._launcher.launch_all(self._questions.advance(at))


class _FreedLast:
    """Nothing but a lifetime."""
