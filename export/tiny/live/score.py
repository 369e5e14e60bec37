"""What counts when a model speaks by itself: appearances reported in time, and false alarms, with
95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

from vicort.export.tiny.live.scenes import Target
from vicort.export.tiny.world import Thing
from vicort.export.tiny.world_questions import named

Z95 = 1.959964  # standard deviations of a two-sided interval of 95 %
IN_TIME = 1.0  # seconds from the moment that a thing appears
GRACE = 1.0  # seconds, a unit: what is said so long after a thing is gone still means it


@dataclass(frozen=True)
class Said:
    seen_until: Fraction  # seconds, last frame of the unit after which it was said
    text: str


@dataclass
class Score:
    seconds: float = 0.0  # of video, each instruction for itself
    appearances: int = 0
    reported: int = 0
    in_time: int = 0
    worded: int = 0  # of those reported: colour and shape correct
    delay: float = 0.0  # seconds, sum of said - appeared over those reported
    false_alarms: int = 0

    def add(self, things: Sequence[Thing], target: Target, said: Iterable[Said]) -> None:
        """A thing is reported by the first words that name it while it is visible, or that name
        another one where no such thing is; everything else that is named is a false alarm."""
        awaited = [thing for thing in things if target.matches(thing)]
        self.appearances += len(awaited)
        for each in said:
            for words in each.text.split(" and "):
                visible = [
                    thing
                    for thing in awaited
                    if thing.start <= each.seen_until <= thing.end + GRACE
                ]
                if not visible:
                    self.false_alarms += 1
                    continue
                found = next((thing for thing in visible if named(thing) == words), visible[0])
                awaited.remove(found)
                late = float(each.seen_until) - found.start
                self.reported += 1
                self.in_time += late <= IN_TIME
                self.worded += named(found) == words
                self.delay += late

    def alarms_in_10_minutes(self) -> float:
        return _in_10_minutes(self.false_alarms, self.seconds)

    def report(self) -> dict[str, object]:
        """Counts, shares and rates with their intervals, None where nothing was to be reported."""
        minutes = self.seconds / 60
        share = self.in_time / self.appearances if self.appearances else None
        return {
            "minutes": round(minutes, 2),
            "appearances": self.appearances,
            "in_time": self.in_time,
            "in_time_share": share and round(share, 4),
            "in_time_interval": _rounded(wilson(self.in_time, self.appearances)),
            "reported": self.reported,
            "right_words": self.worded,
            "delay_s": round(self.delay / self.reported, 3) if self.reported else None,
            "false_alarms": self.false_alarms,
            "false_alarms_in_10_minutes": round(self.alarms_in_10_minutes(), 3),
            "false_alarms_interval": _rounded(
                [_in_10_minutes(edge, self.seconds) for edge in poisson_interval(self.false_alarms)]
            ),
        }


def total(scores: Iterable[Score]) -> Score:
    every = list(scores)
    return Score(*(sum(getattr(score, each.name) for score in every) for each in fields(Score)))


def wilson(right: int, asked: int) -> tuple[float, float] | None:
    """95 % interval of a share (Wilson 1927); None of nothing."""
    if not asked:
        return None
    share, spread = right / asked, Z95**2 / asked
    middle = share + spread / 2
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def poisson_interval(count: int) -> tuple[float, float]:
    """95 % interval of the mean of a Poisson distribution of which `count` was seen (Garwood
    1936)."""
    tail, above = 0.025, 2.0 * count + 10
    low = _root(lambda mean: 1 - _at_most(count - 1, mean) - tail, 0.0, above) if count else 0.0
    return low, _root(lambda mean: tail - _at_most(count, mean), 0.0, above)


def _at_most(count: int, mean: float) -> float:
    """Probability of up to `count` events where `mean` are expected."""
    return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _in_10_minutes(count: float, seconds: float) -> float:
    return count / (seconds / 600)


def _rounded(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [round(edge, 4) for edge in interval]
