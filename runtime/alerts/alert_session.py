"""A session on which alerts ask by themselves, on one stream of an alert file.

frame -> privacy masks -> zones -> a session each -> answers -> rule -> event, evidence, message
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from vicort.runtime.alerts.alert_asker import AlertAsker
from vicort.runtime.alerts.alert_event import AlertsEvent
from vicort.runtime.alerts.alert_file import AlertFile, load_alerts
from vicort.runtime.alerts.alert_questions import AlertQuestions
from vicort.runtime.alerts.alert_reporter import AlertReporter
from vicort.runtime.alerts.evidence_ring import KeptFrame
from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.polygon import PictureMasks
from vicort.runtime.core import Answer, Event, Frame, Question, Summary
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.memory.budget import FittedSystem, MemoryRequest
from vicort.runtime.policies.system import DEFAULT_SYSTEM, System
from vicort.runtime.safe_text import shown
from vicort.runtime.session import Inspection, Session
from vicort.runtime.sources.source import Ending, Wanted

logger = logging.getLogger(__name__)


class AlertSession:
    """Push frames, as into a session, and `on_event` gets an AlertEvent for each change.

    Alerts without a zone share a session that sees the whole picture. Each zone that an alert names
    has a session of its own, which sees nothing outside of it; they share the engines. Questions
    that are due at one moment are asked together.

    With `waits`, a frame waits for the answers that are due before it, so that a file gives the
    same events on every machine. Otherwise an alert skips what is due while its answer before is
    not complete. One thread pushes frames; `submit` may be called by any.
    """

    def __init__(
        self,
        name: str,
        alerts: AlertFile,
        open_session: Callable[[str | None, Callable[[Event], None]], Session],
        reporter: AlertReporter,
        *,
        waits: bool,
        on_event: Callable[[Event], None],
        warn: Callable[[str], None],
        answers: bool = False,
    ) -> None:
        """open_session: opens one for a zone, or for the whole picture (None), whose events go to
        the function. on_event, warn: may be called by several threads. answers: whether `on_event`
        gets the answers to the alerts' questions, too. Raises QuestionError for a question that
        cannot be asked."""
        self.name = name
        entry = alerts.streams[name]
        askers = [
            AlertAsker(each, fired=reporter.had_fired(each)) for each in alerts.of_stream(name)
        ]
        self._on_event = on_event
        self._answers = answers
        self._reporter = reporter
        self._masks = PictureMasks(entry.privacy_masks, entry.zones)
        self._asked_until: Fraction | None = None  # seconds: what was due before has been asked
        self._wanted = Wanted.NO  # whether the frame at that time is taken
        self._left_out: Frame | None = None  # the newest frame, if it was not wanted
        self._ended = False
        # the whole picture first: questions besides those of alerts are asked of the first session
        zones = sorted(
            {each.entry.zone for each in askers}, key=lambda zone: (zone is not None, zone)
        )
        with ExitStack() as stack:
            self._sessions = {
                zone: stack.enter_context(
                    open_session(zone, partial(self._event, first=number == 0))
                )
                for number, zone in enumerate(zones)
            }
            self._first = next(iter(self._sessions.values()))
            self._questions = AlertQuestions(
                askers, self._sessions, reporter, waits=waits, warn=warn
            )
            self._questions.start()
            self._opened = stack.pop_all()

    @classmethod
    def open(
        cls,
        engines: Path | str | EngineSet,
        system: str | Path | System = DEFAULT_SYSTEM,
        *,
        alerts: AlertFile | Path | str,
        stream: str | None = None,
        live: bool = False,
        on_event: Callable[[Event], None] | None = None,
        send: Callable[[Message], None] | None = None,
        reporter: AlertReporter | None = None,
        warn: Callable[[str], None] = logger.warning,
        answers: bool = False,
        **options: Any,
    ) -> AlertSession:
        """Open the sessions of one stream of an alert file.

        engines: the folder of an engine set, or an open set. system: where the stream names none.
        alerts: the file, or its content. stream: its name, None = the only one. live: whether
        frames come at their own pace, so that `delay_ms` means something. send: delivers a message,
        such as `Delivery.send`; None = nothing is delivered. reporter: instead of one that writes
        to the evidence folder of the file. options: of Session; with on_lag "wait", the default,
        frames wait for answers.
        """
        file = alerts if isinstance(alerts, AlertFile) else load_alerts(alerts)
        name = _chosen(file, stream)
        entry = file.streams[name]
        events = on_event or (lambda event: None)
        opened = _engine_set(engines, options.get("threads"))
        if entry.fps is not None:
            options["fps"] = entry.rate
        zones = {each.zone for each in file.of_stream(name)}
        options.setdefault("memory", MemoryRequest(sessions=len(zones)))

        def open_session(zone: str | None, on_event: Callable[[Event], None]) -> Session:
            return Session.open(opened, entry.system or system, on_event=on_event, **options)

        reporter = reporter or AlertReporter.of_file(
            name, file, live=live, on_event=events, send=send, warn=warn
        )
        return cls(
            name,
            file,
            open_session,
            reporter,
            waits=options.get("on_lag", "wait") == "wait",
            on_event=events,
            warn=warn,
            answers=answers,
        )

    # ---- frames: as the methods of Session ----

    def wants(self, at: Fraction) -> Wanted:
        """As `Session.wants`. Asks the questions that are due, and takes their answers where frames
        wait for them."""
        self._questions.resume()
        wanted = max(Wanted(session.wants(at)) for session in self._sessions.values())
        if wanted is not Wanted.BOTH:
            self._asked_until, self._wanted = at, wanted
            self._questions.take_answers(at)
        return wanted

    def push(self, frame: Frame) -> None:
        """As `Session.push`; the picture must be in host memory. It is copied.

        Raises ConfigError, too, if it is not.
        """
        until = self._asked_until
        if until is None or frame.time > until:
            if self.wants(frame.time) is Wanted.BOTH:
                if self._left_out:
                    self._take(self._left_out)
                self.wants(frame.time)
            if not self._wanted:
                self._left_out = frame
                return
        self._left_out = None
        self._take(frame)

    def finish(self, ending: Ending | None = None) -> None:
        """As `Session.finish`. What is due after the last frame is not asked."""
        if not self._ended:
            if last := ending.frame if ending and ending.frame else self._left_out:
                self._take(last)
                self._questions.take_answers(last.time)
            self._ended = True
            self._questions.end(self._first.now)
        for session in self._sessions.values():
            session.finish(replace(ending, frame=None) if ending else None)
        self._questions.wait()
        self._reporter.close()

    def _take(self, frame: Frame) -> None:
        """Mask a frame, keep it as evidence, and give it to each session."""
        if not isinstance(frame.image, np.ndarray):
            raise ConfigError(
                f"a picture of {type(frame.image).__name__}: alerts need NumPy arrays in host "
                "memory, as `open_source(..., decode='cpu')` gives them"
            )
        image = self._masks.public(frame.image)
        self._reporter.add(KeptFrame(frame.time, image))
        for zone, session in self._sessions.items():
            seen = image if zone is None else self._masks.within(zone, image)
            session.push(replace(frame, image=seen))

    def _event(self, event: Event, *, first: bool) -> None:
        """An event of one session. Of several sessions, the first one speaks for the stream."""
        if isinstance(event, Answer) and (self._questions.is_own(event) or not first):
            if self._answers:
                self._on_event(event)
        elif first:
            self._on_event(event)

    # ---- the rest: as the methods of Session, of the first session ----

    @property
    def now(self) -> Fraction:
        return self._first.now

    @property
    def rate(self) -> float | None:
        return self._first.rate

    @property
    def fitted(self) -> FittedSystem:
        return self._first.fitted

    def submit(
        self, question: Question, on_token: Callable[[str], None] | None = None
    ) -> Future[Answer]:
        """A question besides those of the alerts, about the whole picture. Raises QuestionError if
        every alert has a zone: then no session sees it."""
        if None not in self._sessions:
            raise QuestionError(
                f"each alert of stream {self.name} has a zone, so nothing here sees the whole "
                "picture: add an alert without a zone to ask other questions, too"
            )
        return self._first.submit(question, on_token)

    def unknown_words(self, text: str) -> list[str]:
        return self._first.unknown_words(text)

    def inspect(self) -> Inspection:
        return self._first.inspect()

    def settle(self) -> None:
        for session in self._sessions.values():
            session.settle()

    def summary(self) -> Summary:
        return self._first.summary()

    def counts(self) -> AlertsEvent:
        """How often each alert was asked, fired and cleared so far."""
        return AlertsEvent(
            self.name, {each.entry.name: each.counts() for each in self._questions.askers}
        )

    def cancel(self) -> None:
        self.close()

    def close(self) -> None:
        """Close every session, and write the clips that have begun."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._ended = True
        self._questions.end()
        try:
            self._opened.__exit__(kind, error, trace)
        finally:
            self._reporter.close()


def _engine_set(engines: Any, threads: int | None) -> EngineSet:
    """The open set, or that of a folder. Raises ConfigError."""
    if isinstance(engines, EngineSet):
        return engines
    if not isinstance(engines, Path | str):
        raise ConfigError(
            f"the engine set is {shown(engines)}: give its folder, or an open EngineSet"
        )
    return EngineSet.open(Path(engines), threads=threads)


def _chosen(file: AlertFile, stream: str | None) -> str:
    """The name of a stream of the file. Raises ConfigError."""
    names = ", ".join(file.streams)
    if stream is None and len(file.streams) == 1:
        return next(iter(file.streams))
    if stream is None:
        raise ConfigError(f"the alert file has the streams {names}: name one of them as `stream`")
    if stream not in file.streams:
        raise ConfigError(f"stream {shown(stream)} is unknown: name one of {names}")
    return stream
