"""One alert on one stream: what it asks when, and what its answers have said."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction

from vicort.runtime.alerts.alert_file import AlertEntry
from vicort.runtime.alerts.due_times import DueTimes
from vicort.runtime.alerts.rule import Change, Hysteresis
from vicort.runtime.core import Answer, AskGate, Constraint, Question, Sampling


class AlertAsker:
    """It asks its next question when the answer to the one before is known. Questions that were
    due meanwhile are skipped, and counted. Where its gate was closed, the answer before counts
    again."""

    def __init__(self, entry: AlertEntry, *, fired: bool = False) -> None:
        """fired: whether it had fired before the stream began."""
        self.entry = entry
        self.asked = self.saved = self.skipped = self.failed = self.fired = self.cleared = 0
        self.pending: tuple[Question, Future[Answer]] | None = None
        self._number = 0  # of its newest question
        self._last: Answer | None = None  # to the newest question that was asked
        self._due = DueTimes(entry.ask_every)
        self._hysteresis = Hysteresis(entry.rule, fired=fired, period=entry.ask_every)

    def next_question(self, now: Fraction) -> Question:
        """The first one that is due after stream time `now`, in seconds."""
        missed = self._due.until(now)
        self.skipped += missed
        self._due.skip(missed)
        at = self._due.next
        return Question(
            self.entry.question,
            at,
            f"{self.entry.name}.{self._number + 1}",
            sampling=Sampling.greedy(),
            since=self._since(at),
            constraint=Constraint(choices=self.entry.choices),
            gate=self._gate(),
        )

    def submitted(self, question: Question, answer: Future[Answer]) -> None:
        """A session took this question, its next one."""
        self._due.skip(1)
        self._number += 1
        self.pending = question, answer

    def description(self, answer: Answer) -> Question:
        """The question of `then`, about what this answer saw."""
        return Question(
            self.entry.then or "",
            answer.at,
            f"{answer.id}.then",
            sampling=Sampling.greedy(),
            since=answer.since,
            until=answer.seen_until,
        )

    def counted(self, answer: Answer) -> Answer:
        """The answer as it counts: what the last one said and read, where its gate was closed."""
        if answer.asked:
            self.asked += 1
            self._last = answer
            return answer
        self.saved += 1
        last = self._last
        return replace(answer, choices=last.choices, read=last.read) if last else answer

    def weigh(self, answer: Answer) -> Change | None:
        """What this answer changes, as it counts."""
        if answer.seen_until is None or answer.choices is None:  # it saw no frame
            return None
        change = self._hysteresis.add(answer.seen_until, answer.choices[self.entry.fire.choice])
        if change:
            self.fired += change.state == "fired"
            self.cleared += change.state == "cleared"
        return change

    def counts(self) -> dict[str, int]:
        saved = {"saved": self.saved} if self.entry.gate else {}
        return {
            "asked": self.asked,
            **saved,
            "skipped": self.skipped,
            "failed": self.failed,
            "fired": self.fired,
            "cleared": self.cleared,
        }

    def _gate(self) -> AskGate | None:
        """Whether anything like the question came matters only while its answer is a clear no: what
        has left again looks like nothing in particular."""
        gate, last = self.entry.gate, self._last
        if gate is None:
            return None
        low = (
            not self._hysteresis.fired
            and last is not None
            and last.choices is not None
            and last.choices[self.entry.fire.choice] < self.entry.clear.below
        )
        return AskGate(gate.changed, gate.like if low else None, self.entry.name)

    def _since(self, at: Fraction) -> Fraction | None:
        window = self.entry.window
        return None if window is None else max(Fraction(0), at - window)
