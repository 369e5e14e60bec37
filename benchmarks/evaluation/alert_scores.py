"""How good an alert is: the moments at which it fired, against the stretches of time in which what
it waits for was visible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

# seconds after a stretch in which the alert may still fire for it: one ask of the default interval
TOLERANCE = 1.0
HOUR = 3600.0  # seconds

# seconds, from the first moment at which it is visible to the first at which it is gone
Stretch = tuple[float, float]


@dataclass(frozen=True)
class Matching:
    """What became of each firing and of each stretch."""

    delays: tuple[float, ...]  # seconds, of the firings that count, in order of time
    false_at: tuple[float, ...]  # seconds, of firings that belong to no stretch
    missed: tuple[Stretch, ...]  # without a firing


def match(
    fired: Iterable[float], stretches: Iterable[Stretch], tolerance: float = TOLERANCE
) -> Matching:
    """Each stretch takes at most one firing, and each firing belongs to at most one stretch, so an
    alert that fires twice for one stretch raises a false alarm.

    fired: seconds of the evidence, in any order. stretches: disjoint. A firing may belong to a
    stretch from its start to `tolerance` seconds after its end. No other assignment matches more:
    of the stretches that a firing may belong to, the one that ends first takes it.

    >>> match([2.0, 3.0, 9.0], [(1.0, 4.0)], tolerance=1.0)
    Matching(delays=(1.0,), false_at=(3.0, 9.0), missed=())
    """
    waiting = sorted(stretches)
    taken: set[Stretch] = set()
    delays, false_at = [], []
    for at in sorted(fired):
        fits = (
            each for each in waiting if each not in taken and each[0] <= at <= each[1] + tolerance
        )
        stretch = min(fits, key=lambda each: each[1], default=None)
        if stretch is None:
            false_at.append(at)
        else:
            taken.add(stretch)
            delays.append(at - stretch[0])
    missed = tuple(each for each in waiting if each not in taken)
    return Matching(tuple(delays), tuple(false_at), missed)


@dataclass
class AlertScore:
    """Of one alert, or of several together, over some hours of stream."""

    hours: float = 0.0  # of stream
    matched: int = 0
    false: int = 0
    missed: int = 0
    delays: list[float] = field(default_factory=list)  # seconds, of what was matched

    @classmethod
    def of(cls, matching: Matching, hours: float) -> Self:
        return cls(
            hours,
            len(matching.delays),
            len(matching.false_at),
            len(matching.missed),
            list(matching.delays),
        )

    def add(self, other: AlertScore) -> None:
        """Of another stream."""
        self.hours += other.hours
        self.add_alert(other)

    def add_alert(self, other: AlertScore) -> None:
        """Of another alert on the same stream."""
        self.matched += other.matched
        self.false += other.false
        self.missed += other.missed
        self.delays += other.delays

    @property
    def events(self) -> int:
        return self.matched + self.missed

    @property
    def precision(self) -> float | None:
        """None where nothing fired."""
        return _share(self.matched, self.matched + self.false)

    @property
    def recall(self) -> float | None:
        """None where there was nothing to fire at."""
        return _share(self.matched, self.events)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of both; None where there was nothing to fire at and nothing fired."""
        return _share(2 * self.matched, 2 * self.matched + self.false + self.missed)

    @property
    def false_an_hour(self) -> float | None:
        return _share(self.false, self.hours)

    def delay(self, percent: float) -> float | None:
        """Seconds, a percentile of the delays of what was matched; None where nothing was."""
        return float(np.percentile(self.delays, percent)) if self.delays else None

    def to_json(self) -> dict[str, Any]:
        values = {
            "hours": self.hours,
            "events": self.events,
            "matched": self.matched,
            "missed": self.missed,
            "false alarms": self.false,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "delay_p50_s": self.delay(50),
            "delay_p95_s": self.delay(95),
            "false_alarms_an_hour": self.false_an_hour,
        }
        return {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in values.items()
        }


def together(scores: Sequence[AlertScore]) -> AlertScore:
    """Of all alerts of the same stream: its hours count once."""
    whole = AlertScore(hours=scores[0].hours if scores else 0.0)
    for score in scores:
        whole.add_alert(score)
    return whole


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
