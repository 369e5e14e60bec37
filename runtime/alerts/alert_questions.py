"""The questions of all alerts of one stream: asked when they are due, answered, and weighed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from fractions import Fraction
from functools import partial

from vicort.runtime.alerts.alert_asker import AlertAsker
from vicort.runtime.alerts.alert_reporter import AlertReporter, Evidence
from vicort.runtime.alerts.rule import Change
from vicort.runtime.core import Answer, Question
from vicort.runtime.errors import QuestionError, SessionClosed, VicortError
from vicort.runtime.redact import redact
from vicort.runtime.safe_text import brief, shown
from vicort.runtime.session import Session


class AlertQuestions:
    """Each alert has one open question at most. It is submitted before it is due, so that those
    that are due at one moment are asked together.

    With `waits`, `take_answers` waits for answers, on the thread that calls it. Otherwise an answer
    is weighed on the thread that gives it.
    """

    def __init__(
        self,
        askers: Sequence[AlertAsker],
        sessions: Mapping[str | None, Session],
        reporter: AlertReporter,
        *,
        waits: bool,
        warn: Callable[[str], None],
    ) -> None:
        """sessions: by the zone of an alert, None = the whole picture."""
        self.askers = askers
        self._sessions = sessions
        self._reporter = reporter
        self._waits = waits
        self._warn = warn
        self._ended = False
        self._refused: set[str] = set()  # alerts of which a question was refused
        self._own: set[str] = set()  # ids of questions that are not answered
        self._idle = threading.Condition()

    def start(self) -> None:
        """Submit the first question of each alert. Raises QuestionError for one that cannot be
        asked."""
        for asker in self.askers:
            session = self._sessions[asker.entry.zone]
            for text in filter(None, (asker.entry.question, asker.entry.then)):
                self._doubt(asker, session.unknown_words(text), text)
            try:
                if asker.entry.then:
                    session.submit(Question(asker.entry.then)).cancel()
                self._ask(asker)
            except QuestionError as error:
                raise QuestionError(f"alert {asker.entry.name}: {error}") from error

    def is_own(self, answer: Answer) -> bool:
        """Whether an answer that is just given is that of an alert."""
        return answer.id in self._own

    def resume(self) -> None:
        """Ask again for alerts whose last question had no answer."""
        for asker in self.askers:
            if asker.pending is None and not self._ended:
                self._try_to_ask(asker)

    def take_answers(self, until: Fraction | None) -> None:
        """Where frames wait for answers: wait for all that were due before `until`, in seconds,
        None = all that are open."""
        if not self._waits:
            return
        due = [
            (asker, *asker.pending)
            for asker in self.askers
            if asker.pending and (until is None or (asker.pending[0].at or 0) < until)
        ]
        for asker, question, answer in due:
            self._answered(asker, question, answer)

    def end(self, now: Fraction | None = None) -> None:
        """Ask no more. now: withdraw what is due later, in seconds of the stream."""
        self._ended = True
        for asker in self.askers:
            pending = asker.pending
            if now is not None and pending and (pending[0].at or 0) > now:
                pending[1].cancel()

    def wait(self) -> None:
        """Until no question is open and every change is reported."""
        self.take_answers(None)
        with self._idle:
            self._idle.wait_for(lambda: not any(each.pending for each in self.askers))

    def _doubt(self, asker: AlertAsker, words: Sequence[str], text: str) -> None:
        if words:
            self._warn(
                f"alert {asker.entry.name}: the model does not know "
                f"{', '.join(map(shown, words))}, and reads {shown(text)} without: its answers may "
                "mean nothing"
            )

    def _ask(self, asker: AlertAsker) -> None:
        """Submit its next question, which is asked when the stream gets there."""
        session = self._sessions[asker.entry.zone]
        question = asker.next_question(session.now)
        self._own.add(question.id)
        try:
            answer = session.submit(question)
        except BaseException:
            self._own.discard(question.id)
            raise
        asker.submitted(question, answer)
        if not self._waits:
            answer.add_done_callback(partial(self._answered, asker, question))
        if self._ended:  # meanwhile
            answer.cancel()

    def _answered(self, asker: AlertAsker, question: Question, future: Future[Answer]) -> None:
        try:
            answer = self._result(asker, question, future)
            answer = answer and asker.counted(answer)
            change = answer and asker.weigh(answer)
            if answer and change:
                evidence = self._reporter.gather(asker.entry, change)
                if change.state == "fired" and asker.entry.then:
                    self._describe(asker, change, answer, evidence)
                    return
                self._reporter.report(asker.entry, change, answer, evidence)
        except BaseException:
            self._rest(asker)
            raise
        self._go_on(asker, answer)

    def _result(
        self, asker: AlertAsker, question: Question, future: Future[Answer]
    ) -> Answer | None:
        """The answer; None if there is none, which is counted, and said the first time."""
        try:
            return future.result()
        except (SessionClosed, CancelledError):
            return None
        except Exception as error:  # noqa: BLE001 - an engine's: the alert goes on
            asker.failed += 1
            if asker.failed == 1:
                self._warn(f"alert {asker.entry.name}: a question has no answer: {_why(error)}")
            return None
        finally:
            self._own.discard(question.id)

    def _describe(
        self, asker: AlertAsker, change: Change, answer: Answer, evidence: Evidence
    ) -> None:
        """Ask the question of `then`; the event waits for its answer."""
        question = asker.description(answer)
        self._own.add(question.id)
        try:
            described = self._sessions[asker.entry.zone].submit(question)
        except Exception as error:  # noqa: BLE001 - the event comes without the answer
            described = Future()
            described.set_exception(error)
        then = partial(self._described, asker, change, answer, evidence, question)
        if self._waits:
            then(described)
        else:
            described.add_done_callback(then)

    def _described(
        self,
        asker: AlertAsker,
        change: Change,
        answer: Answer,
        evidence: Evidence,
        question: Question,
        future: Future[Answer],
    ) -> None:
        try:
            described = self._result(asker, question, future)
            text = described.text if described else None
            self._reporter.report(asker.entry, change, answer, evidence, text)
        except BaseException:
            self._rest(asker)
            raise
        self._go_on(asker, answer)

    def _go_on(self, asker: AlertAsker, answer: Answer | None) -> None:
        """Ask again, unless there was no answer: then `resume` does with the next frame."""
        if answer is None or self._ended:
            self._rest(asker)
        else:
            self._try_to_ask(asker)

    def _try_to_ask(self, asker: AlertAsker) -> None:
        """What is refused, as where too many questions are open, is tried again with the next
        frame; it is said once."""
        try:
            self._ask(asker)
        except SessionClosed:
            self._rest(asker)
        except Exception as error:  # noqa: BLE001 - an engine's: the alert goes on
            self._rest(asker)
            if asker.entry.name not in self._refused:
                self._refused.add(asker.entry.name)
                self._warn(
                    f"alert {asker.entry.name}: its next question is refused: {_why(error)}; it is "
                    "tried again with each frame"
                )

    def _rest(self, asker: AlertAsker) -> None:
        with self._idle:
            asker.pending = None
            self._idle.notify_all()


def _why(error: Exception) -> str:
    """One line. An error of vicort is one already; another one is named by its type, too."""
    if isinstance(error, VicortError):
        return str(error)
    return redact(f"{type(error).__name__}: {brief(error)}")
