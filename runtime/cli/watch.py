"""Runs one source from its first frame to its summary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, TypeGuard

from vicort.runtime.alerts.alert_session import AlertSession
from vicort.runtime.change_asker import SHOWS_CHANGES, ChangeAsker
from vicort.runtime.cli.doubts import Doubts
from vicort.runtime.cli.lag import LagMeter
from vicort.runtime.cli.moments import WrittenQuestion
from vicort.runtime.cli.output import Output
from vicort.runtime.cli.question_router import QuestionRouter, TypedQuestions
from vicort.runtime.cli.recurring import RecurringAsker
from vicort.runtime.cli.run_options import Options
from vicort.runtime.cli.service_status import ServiceStatus
from vicort.runtime.core import UNIT_FRAMES, Answer, Event, Question
from vicort.runtime.devices.stage_clock import SpanSink
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import QuestionError, TruncatedSource
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.rendering.notes import Notes
from vicort.runtime.session import Session
from vicort.runtime.sources import Source
from vicort.runtime.sources.source import Wanted

AnySession = Session | AlertSession
NEVER_YES = 1  # exit code: the sources ended before --until was answered with yes
POLL = 0.05  # seconds between checks whether to stop
TYPED_SECONDS = 5.0  # how long a silent stdin is waited for after the last frame


@dataclass(frozen=True)
class RunContext:
    """Objects that all sources of a run share."""

    options: Options
    engines: EngineSet
    memory: MemoryRequest
    output: Output
    trace: SpanSink | None
    router: QuestionRouter
    typed_questions: TypedQuestions | None
    stopping: threading.Event  # when set, every source ends at its next frame
    status: ServiceStatus
    open_session: Callable[..., AnySession] = Session.open
    notes: Notes | None = None  # collects what --render draws


class Watch:
    """Runs one source. label: names the source in its events; "" if it is the only one."""

    def __init__(self, source: Source, context: RunContext, label: str = "") -> None:
        options = context.options
        self.source = source
        self.label = label
        self._context = context
        self._output = context.output
        self._meter = LagMeter() if options.realtime or source.live else None
        self._pace = Pace() if options.realtime else None
        self._doubts = Doubts(partial(context.output.warn, source=label))
        self._askers: list[RecurringAsker] = []
        # questions that need to know when the stream began
        self._held: list[WrittenQuestion] = []
        # questions about time 0, where there is a frame as soon as it is pushed
        self._at_start: list[Question] = []
        self._change_askers: list[ChangeAsker] = []
        self.said_yes = False
        self._failed: BaseException | None = None  # why the first question has no answer

    def run(self) -> int:
        """Returns 0, or the exit code of a truncated source."""
        with self._context.open_session(
            self._context.engines,
            self._context.options.system,
            threads=self._context.options.threads,
            fps=self._context.options.fps,
            overlap=self._context.options.overlap,
            on_lag=self._on_lag,
            freshness=self._context.options.freshness,
            sampling=self._context.options.sampling,
            trace=self._trace,
            on_event=self._event,
            memory=self._context.memory,
            system_prompt=self._context.options.system_prompt,
        ) as session:
            self._show_budget(session)
            self._context.status.ready()
            try:
                return self._watch(session)
            except KeyboardInterrupt:
                self._summarise(session)
                self._output.close()
                session.cancel()
                raise
            finally:
                self._context.router.leave(self.label)

    def _show_budget(self, session: AnySession) -> None:
        fitted = session.fitted
        if fitted.given_up:
            self._output.warn(fitted.given_up, self.label)
        self._output.event(fitted.event(session.rate), self.label)

    @property
    def _trace(self) -> SpanSink | None:
        trace = self._context.trace
        return _LabelledSpans(trace, self.label) if trace and self.label else trace

    @property
    def _on_lag(self) -> str:
        return self._context.options.on_lag or "wait"

    @property
    def _waits(self) -> bool:
        """Whether frames wait for what is asked before them."""
        return self._on_lag == "wait"

    def _watch(self, session: AnySession) -> int:
        context = self._context
        submit = partial(self._submit_own, session)
        for question in context.options.questions:
            if self._must_wait(question):
                self._held.append(question)
            elif question.at == 0:
                self._at_start.append(question)
            else:
                submit(question)
        self._askers = [
            RecurringAsker(each, submit, waits=self._waits) for each in context.options.recurring
        ]
        self._change_askers = self._make_change_askers(session)
        context.router.enter(self.label, partial(self._ask_now, session), self.source.name)
        with self._output.progress_of(self.source, shown=not self.label):
            code = self._feed(session)
            self._ask_at_start(session)
            self._submit_held(session, at_end=True)
            session.finish(self.source.ending)
            if self._change_askers:  # the last chunks may show a change
                self._ask_at_changes(session)
                session.finish()
            if context.typed_questions and not context.stopping.is_set():
                self._wait_for_typed(context.typed_questions)
                session.finish()
        self._stop_if_satisfied()
        self._summarise(session)
        self._output.check()
        if self._failed:
            raise self._failed
        return code

    def _feed(self, session: AnySession) -> int:
        """Push the frames that the session wants, each when it is due. Returns an exit code."""
        self.source.expect(session.rate)
        try:
            for frame in self.source.frames(partial(self._wants, session)):
                with self.source.named_in_errors() if not self.label else nullcontext():
                    session.push(frame)
                self._ask_at_start(session)
                self._ask_at_changes(session)
                self._context.status.frame(frame.time, self.label)
                self._output.progress(frame.index + 1)
                self._output.check()
                self._stop_if_satisfied()
                if self._context.stopping.is_set():
                    break
        except TruncatedSource as error:  # questions about the delivered frames are still answered
            self._output.warn(str(error), self.label)
            return error.exit_code
        return 0

    def _wants(self, session: AnySession, at: Fraction) -> Wanted:
        captured = self._pace.wait(at) if self._pace else time.monotonic()
        if self._context.notes:
            self._context.notes.frame(at)
        for each in self._askers:
            each.advance(at)
        if self._held and self.source.began:
            self._submit_held(session, at_end=False)
        if at > 0:  # there is no frame at time 0
            self._ask_at_start(session)
        wanted = session.wants(at)
        self._ask_at_changes(session)
        if wanted and self._meter:
            self._meter.captured(at, captured)
        return wanted

    def _ask_at_start(self, session: AnySession) -> None:
        asked, self._at_start = self._at_start, []
        for question in asked:
            self._submit_own(session, question)

    def _make_change_askers(self, session: AnySession) -> list[ChangeAsker]:
        questions = self._context.options.at_changes
        if not questions:
            return []
        frames, system = session.inspect().chunk_frames, session.fitted.system
        if frames > UNIT_FRAMES:
            self._output.warn(
                f"--at-changes sees a change when its chunk of {frames} frames is full: "
                f"--system {SHOWS_CHANGES} has chunks of {UNIT_FRAMES}",
                self.label,
            )
        return [
            ChangeAsker(each, system, waits=self._waits, chunk_frames=frames) for each in questions
        ]

    def _ask_at_changes(self, session: AnySession) -> None:
        """Ask about changes that are in memory; where frames wait, first let all chunks get
        there."""
        if self._change_askers and self._waits:
            session.settle()
        for each in self._change_askers:
            each.advance(partial(self._submit_own, session))

    def _stop_if_satisfied(self) -> None:
        if any(each.satisfied for each in self._askers):
            self.said_yes = True
            self._context.stopping.set()

    def _wait_for_typed(self, typed: TypedQuestions) -> None:
        """Accept typed questions after the last frame: those of a terminal until it says that
        there are no more, others until stdin ends or is silent for TYPED_SECONDS."""
        ended = time.monotonic()
        if typed.by_hand and not typed.ended.is_set():
            self._output.warn("the video has ended: type more questions, or Ctrl-D to end")
        while not typed.ended.wait(POLL) and not self._context.stopping.is_set():
            self._output.check()
            if not typed.by_hand and typed.silent_since(ended) > TYPED_SECONDS:
                return

    def _ask_now(self, session: AnySession, question: Question) -> Future:
        return self._submit(
            session, replace(question, at=session.now) if question.at is None else question
        )

    def _must_wait(self, question: Question) -> TypeGuard[WrittenQuestion]:
        """Whether a question of the command line is about a time of the wall clock: its stream must
        have begun, and one without a time must know when it is asked."""
        if not self.source.keeps_wall_clock or not isinstance(question, WrittenQuestion):
            return False
        return question.needs_start

    def _submit_held(self, session: AnySession, at_end: bool) -> None:
        """Submit the held questions: those with a time, and `at_end` the others, too."""
        held, self._held = self._held, []
        for question in held:
            if question.at is None and not at_end:
                self._held.append(question)
                continue
            try:
                self._submit_own(session, question)
            except QuestionError as error:  # the stream goes on for the others
                self._failed = self._failed or error

    def _submit_own(self, session: AnySession, question: Question) -> Future:
        """A question of the command line: that it has no answer fails the run at its end."""
        answer = self._submit(session, question)
        answer.add_done_callback(self._answered)
        return answer

    def _answered(self, answer: Future) -> None:
        if not answer.cancelled() and (error := answer.exception()):
            self._failed = self._failed or error

    def _submit(self, session: AnySession, question: Question) -> Future:
        if isinstance(question, WrittenQuestion):
            question = question.of_source(self.source, session.now)
        answer = session.submit(question, partial(self._token, question.id, question.text))
        self._doubts.asked(session, question)
        return answer

    def _token(self, answer_id: str, question: str, text: str) -> None:
        if self._meter:
            self._meter.token(answer_id)
        if not self.label:
            self._output.token(answer_id, question, text)

    def _event(self, event: Event) -> None:
        if self._meter:
            self._meter.event(event)
        self._output.event(event, self.label)
        for each in self._change_askers:
            each.event(event)
        if self._context.notes:
            self._context.notes.event(event)
        if isinstance(event, Answer):
            self._doubts.answered(event)

    def _summarise(self, session: AnySession) -> None:
        options = self._context.options
        for question, changes in zip(options.at_changes, self._change_askers, strict=False):
            self._warn_skipped(question, changes.skipped)
        for recurring, asker in zip(options.recurring, self._askers, strict=False):
            self._warn_skipped(recurring.question, asker.skipped)
            if asker.unsure:
                self._output.warn(
                    f"{recurring.question.text!r} was answered with yes {asker.unsure} times with "
                    f"a probability below {recurring.least:g}, at most {asker.best:.2f}: "
                    "--until-probability sets what is enough",
                    self.label,
                )
        if isinstance(session, AlertSession):
            self._output.event(session.counts(), self.label)
        summary = session.summary()
        self._output.event(
            replace(summary, realtime=self._meter.summary()) if self._meter else summary, self.label
        )

    def _warn_skipped(self, question: Question, times: int) -> None:
        if times:
            self._output.warn(
                f"{question.text!r} was skipped {times} times, because its previous answer was not "
                "complete",
                self.label,
            )


class _LabelledSpans:
    """Adds the label of the source to the tracks of a trace."""

    def __init__(self, trace: SpanSink, label: str) -> None:
        self._trace = trace
        self._label = label

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        self._trace.span(f"{self._label}: {track}", name, start_ns, end_ns, **args)


class Pace:
    """Plays a source at the speed of its timestamps."""

    def __init__(self) -> None:
        self._first: tuple[float, Fraction] | None = None  # monotonic and source time, seconds

    def wait(self, at: Fraction) -> float:
        """Sleep until the frame at this source time is due; the first frame is due at once.
        Returns the due time in monotonic seconds."""
        now = time.monotonic()
        began, first = self._first = self._first or (now, at)
        due = began + float(at - first)
        time.sleep(max(0.0, due - now))
        return due
