"""Questions that are asked repeatedly while a stream runs."""

from __future__ import annotations

import math
import re
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction

from vicort.runtime.cli.questions import Submit
from vicort.runtime.core import Answer, Question

UNTIL_SECONDS = Fraction(2)  # period of an --until question
YES = re.compile(r"\W*yes\b", re.IGNORECASE)


@dataclass(frozen=True)
class RecurringQuestion:
    """A question and its period."""

    question: Question
    period: Fraction  # seconds of the stream
    until_yes: bool = False  # the first yes ends the run


class RecurringAsker:
    """Asks one recurring question of one stream at period, 2 * period, …

    With `waits` it waits for the previous answer, so that a file gets the same questions on every
    machine. Otherwise it skips and counts the times that are due before the previous answer is
    complete.
    """

    def __init__(self, recurring: RecurringQuestion, submit: Submit, *, waits: bool) -> None:
        self._recurring = recurring
        self._submit = submit
        self._waits = waits
        self._due = recurring.period
        self._asked = 0
        self._answer: Future[Answer] | None = None
        self._yes = False
        self.skipped = 0  # number of due times at which it was not asked

    def advance(self, at: Fraction) -> None:
        """Ask if the question is due before stream time `at`. Call it before the frame at that time
        is pushed. Raises the error of the previous answer."""
        if at <= self._due or self.satisfied:
            return
        if self._answer and not self._answer.done() and not self._waits:
            ticks = self._ticks_before(at)
            self.skipped += ticks
            self._due += ticks * self._recurring.period
            return
        if self._answer:
            self._answer.result()
        if self.satisfied:
            return
        self._due += (self._ticks_before(at) - 1) * self._recurring.period  # asked once after a gap
        self._asked += 1
        question = self._recurring.question
        self._answer = self._submit(
            replace(question, at=self._due, id=f"{question.id}.{self._asked}")
        )
        self._due += self._recurring.period

    @property
    def satisfied(self) -> bool:
        """Whether an until_yes question was answered with yes."""
        answer = self._answer
        if self._recurring.until_yes and answer is not None and answer.done():
            self._yes = self._yes or says_yes(answer.result().text)
        return self._yes

    def _ticks_before(self, at: Fraction) -> int:
        """Number of due times from the next one on that are before `at`."""
        return math.ceil((at - self._due) / self._recurring.period)


def says_yes(text: str) -> bool:
    """Whether an answer begins with yes."""
    return YES.match(text) is not None
