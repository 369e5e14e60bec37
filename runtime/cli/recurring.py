"""Questions that are asked repeatedly while a stream runs."""

from __future__ import annotations

import re
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction

from vicort.runtime.alerts.due_times import DueTimes
from vicort.runtime.cli.questions import Submit
from vicort.runtime.core import Answer, Question

UNTIL_SECONDS = Fraction(2)  # period of an --until question
# Of the embedded model, asked every 2 s about 39 shapes that came and 38 that did not (distinct): a
# yes of this probability came for 38 and for none, and any yes for 39 and for one.
UNTIL_PROBABILITY = 0.8
YES = re.compile(r"\W*yes\b", re.IGNORECASE)


@dataclass(frozen=True)
class RecurringQuestion:
    """A question and its period."""

    question: Question
    period: Fraction  # seconds of the stream
    until_yes: bool = False  # the first yes ends the run
    least: float = UNTIL_PROBABILITY  # of a yes that ends the run: the probability of its "yes"


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
        self._due = DueTimes(recurring.period)
        self._asked = 0
        self._answer: Future[Answer] | None = None
        self._yes = False
        self.skipped = 0  # number of due times at which it was not asked
        self._yes_counted: Future[Answer] | None = None  # the last one that `unsure` counts
        self.unsure = 0  # number of answers that were yes with too little probability
        self.best = 0.0  # the highest of their probabilities

    def advance(self, at: Fraction) -> None:
        """Ask if the question is due before stream time `at`. Call it before the frame at that time
        is pushed. Raises the error of the previous answer."""
        ticks = self._due.before(at)
        if not ticks or self.satisfied:
            return
        if self._answer and not self._answer.done() and not self._waits:
            self.skipped += ticks
            self._due.skip(ticks)
            return
        if self._answer:
            self._answer.result()
        if self.satisfied:
            return
        self._due.skip(ticks - 1)  # asked once after a gap
        self._asked += 1
        question = self._recurring.question
        self._answer = self._submit(
            replace(question, at=self._due.next, id=f"{question.id}.{self._asked}")
        )
        self._due.skip(1)

    @property
    def satisfied(self) -> bool:
        """Whether an until_yes question was answered with a yes that is probable enough."""
        future = self._answer
        if self._recurring.until_yes and future is not None and future.done():
            answer = future.result()
            if says_yes(answer.text):
                self._weigh(future, answer.first_probability)
        return self._yes

    def _weigh(self, yes: Future[Answer], probability: float) -> None:
        if probability >= self._recurring.least:
            self._yes = True
        elif yes is not self._yes_counted:
            self._yes_counted = yes
            self.unsure += 1
            self.best = max(self.best, probability)


def says_yes(text: str) -> bool:
    """Whether an answer begins with yes."""
    return YES.match(text) is not None
