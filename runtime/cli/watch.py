"""One source from its first frame to its summary."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from vicort.runtime.cli.arguments import Options
from vicort.runtime.cli.lag import LagMeter
from vicort.runtime.cli.output import Output
from vicort.runtime.cli.question_router import QuestionRouter, TypedQuestions
from vicort.runtime.cli.recurring import RecurringAsker
from vicort.runtime.core import Event, Question
from vicort.runtime.devices.stage_clock import SpanSink
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import TruncatedSource
from vicort.runtime.session import Session
from vicort.runtime.sources import Source

NEVER_YES = 1  # exit code: the sources ended, and --until was not answered yes
POLL = 0.05  # seconds between looks at whether to stop, where nothing else wakes a thread


@dataclass(frozen=True)
class RunContext:
    """What all the sources of a run share."""

    options: Options
    engines: Path | EngineSet
    output: Output
    trace: SpanSink | None
    router: QuestionRouter
    typed: TypedQuestions | None
    stopping: threading.Event  # set: every source ends at its next frame
    open_session: Any = Session.open


class Watch:
    """Watches one source; `label` tells its events from others', "" where it is the only one."""

    def __init__(self, source: Source, context: RunContext, label: str = "") -> None:
        options = context.options
        self.source = source
        self.label = label
        self._context = context
        self._output = context.output
        self._meter = LagMeter() if options.realtime or source.live else None
        self._pace = Pace() if options.realtime else None
        self._askers: list[RecurringAsker] = []
        self.said_yes = False

    def run(self) -> int:
        """Returns the exit code: 0, or that of a source that breaks off."""
        with self._context.open_session(
            self._context.engines,
            self._context.options.system,
            fps=self._context.options.fps,
            overlap=self._context.options.overlap,
            on_lag=self._on_lag,
            sampling=self._context.options.sampling,
            trace=self._trace,
            on_event=self._event,
        ) as session:
            try:
                return self._watch(session)
            except KeyboardInterrupt:
                self._summarise(session)
                self._output.close()
                session.cancel()
                raise
            finally:
                self._context.router.leave(self.label)

    @property
    def _trace(self) -> SpanSink | None:
        trace = self._context.trace
        return _LabelledSpans(trace, self.label) if trace and self.label else trace

    @property
    def _on_lag(self) -> str:
        return self._context.options.on_lag or "wait"

    def _watch(self, session: Session) -> int:
        context = self._context
        submit = partial(self._submit, session)
        for question in context.options.questions:
            submit(question)
        self._askers = [
            RecurringAsker(each, submit, waits=self._on_lag == "wait")
            for each in context.options.recurring
        ]
        context.router.enter(self.label, partial(self._ask_now, session))
        with self._output.progress_of(self.source, shown=not self.label):
            code = self._feed(session)
            session.finish()
            if context.typed and not context.stopping.is_set():
                self._wait_for_typed(context.typed)
                session.finish()
        self._stop_if_satisfied()
        self._summarise(session)
        self._output.check()
        return code

    def _feed(self, session: Session) -> int:
        """Push the frames that the session wants, each when it is due; returns an exit code."""
        try:
            for frame in self.source.frames(partial(self._wants, session)):
                session.push(frame)
                self._output.progress(frame.index + 1)
                self._output.check()
                self._stop_if_satisfied()
                if self._context.stopping.is_set():
                    break
        except TruncatedSource as error:  # what was seen is answered all the same
            self._output.warn(str(error))
            return error.exit_code
        return 0

    def _wants(self, session: Session, at: Fraction) -> bool:
        captured = self._pace.wait(at) if self._pace else time.monotonic()
        for each in self._askers:
            each.see(at)
        wanted = session.wants(at)
        if wanted and self._meter:
            self._meter.captured(at, captured)
        return wanted

    def _stop_if_satisfied(self) -> None:
        if any(each.satisfied for each in self._askers):
            self.said_yes = True
            self._context.stopping.set()

    def _wait_for_typed(self, typed: TypedQuestions) -> None:
        """Questions about what was seen may still be typed, until whoever types them has no
        more."""
        while not typed.ended.wait(POLL) and not self._context.stopping.is_set():
            self._output.check()

    def _ask_now(self, session: Session, question: Question) -> Future:
        return self._submit(
            session, replace(question, at=session.now) if question.at is None else question
        )

    def _submit(self, session: Session, question: Question) -> Future:
        return session.submit(question, partial(self._token, question.id, question.text))

    def _token(self, answer_id: str, question: str, text: str) -> None:
        if self._meter:
            self._meter.token(answer_id)
        if not self.label:
            self._output.token(answer_id, question, text)

    def _event(self, event: Event) -> None:
        if self._meter:
            self._meter.event(event)
        self._output.event(event, self.label)

    def _summarise(self, session: Session) -> None:
        for standing, each in zip(self._context.options.recurring, self._askers, strict=False):
            if each.skipped:
                self._output.warn(
                    f"{standing.question.text!r} was due {each.skipped} times more, while its "
                    "last answer was not there yet"
                )
        summary = session.summary()
        self._output.event(
            replace(summary, realtime=self._meter.summary()) if self._meter else summary, self.label
        )


class _LabelledSpans:
    """A trace whose tracks say which source they belong to."""

    def __init__(self, trace: SpanSink, label: str) -> None:
        self._trace, self._label = trace, label

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        self._trace.span(f"{self._label}: {track}", name, start_ns, end_ns, **args)


class Pace:
    """Plays a source by its timestamps."""

    def __init__(self) -> None:
        self._first: tuple[float, Fraction] | None = None  # monotonic seconds, and the source's

    def wait(self, at: Fraction) -> float:
        """Sleep until a frame of that time is due; the first one is due at once. Returns when that
        was, in monotonic seconds."""
        now = time.monotonic()
        began, first = self._first = self._first or (now, at)
        due = began + float(at - first)
        time.sleep(max(0.0, due - now))
        return due
