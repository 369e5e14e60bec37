"""Questions that are asked again and again while a stream runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction

from vicort.runtime.core import Question

UNTIL_SECONDS = Fraction(2)  # from one asking of an --until question to the next
YES = re.compile(r"\W*yes\b", re.IGNORECASE)
Submit = Callable[[Question], Future]


@dataclass(frozen=True)
class RecurringQuestion:
    """What is asked, and how often."""

    question: Question
    period: Fraction  # seconds of the stream
    until_yes: bool = False  # whether the first yes ends the run


class RecurringAsker:
    """One standing question on its way through one stream: asked at period, 2 · period, …

    A live stream does not wait for an answer: what is due before the last answer is there is left
    out, and counted. A file waits, so that it is asked the same questions on every machine.
    """

    def __init__(self, standing: RecurringQuestion, submit: Submit, *, waits: bool) -> None:
        self._recurring = standing
        self._submit = submit
        self._waits = waits
        self._due = standing.period
        self._asked = 0
        self._answer: Future | None = None
        self._yes = False
        self.skipped = 0  # times that it was due and not asked

    def see(self, at: Fraction) -> None:
        """The stream has come to a frame of that time, which is not pushed yet. Raises what the
        last answer failed with."""
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
        self._due += (self._ticks_before(at) - 1) * self._recurring.period  # ticks in a gap are one
        self._asked += 1
        question = self._recurring.question
        self._answer = self._submit(
            replace(question, at=self._due, id=f"{question.id}.{self._asked}")
        )
        self._due += self._recurring.period

    @property
    def satisfied(self) -> bool:
        """Whether the answer was yes, and that is all that was wanted."""
        answer = self._answer
        if self._recurring.until_yes and answer is not None and answer.done():
            self._yes = self._yes or says_yes(answer.result().text)
        return self._yes

    def _ticks_before(self, at: Fraction) -> int:
        """Of the times that it is due at, those from the next one on and before `at`."""
        return math.ceil((at - self._due) / self._recurring.period)


def says_yes(text: str) -> bool:
    """Whether an answer begins with yes."""
    return YES.match(text) is not None
