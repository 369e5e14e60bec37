"""The stream times at which a question is due: its period, twice its period, and so on."""

from __future__ import annotations

import math
from fractions import Fraction


class DueTimes:
    def __init__(self, period: Fraction) -> None:
        """period: seconds of the stream, above 0."""
        self.period = period
        self.next = period  # seconds, the next one

    def before(self, at: Fraction) -> int:
        """Number of due times from the next one on that are before `at`.

        >>> DueTimes(Fraction(2)).before(Fraction(6))
        2
        """
        return max(0, math.ceil((at - self.next) / self.period))

    def until(self, at: Fraction) -> int:
        """The same, with one at `at`.

        >>> DueTimes(Fraction(2)).until(Fraction(6))
        3
        """
        return max(0, math.floor((at - self.next) / self.period) + 1)

    def skip(self, number: int) -> None:
        self.next += number * self.period
