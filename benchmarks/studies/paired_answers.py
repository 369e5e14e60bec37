"""Two candidates that answered the same questions: how many answers differ, and the difference of
their accuracies with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vicort.benchmarks.evaluation.ages import Z95, Row
from vicort.runtime.errors import ConfigError

GOAL = 1.0  # points of accuracy that a number format may cost
RESAMPLES = 10_000


@dataclass(frozen=True)
class Pair:
    """One question, answered by the reference and by another candidate."""

    stream: int
    reference: Row
    other: Row

    @property
    def change(self) -> int:
        """1: right only by the other candidate; -1: right only by the reference; 0: else."""
        return int(self.other.right) - int(self.reference.right)


def pair(reference: Iterable[Row], other: Iterable[Row]) -> list[Pair]:
    """Pairs by question, in the order of the reference. Raises ConfigError unless both hold the
    same questions, each once."""
    first, second = list(reference), list(other)
    theirs = {row.key: row for row in second}
    keys = [row.key for row in first]
    if len(set(keys)) != len(keys) or len(theirs) != len(second) or theirs.keys() != set(keys):
        raise ConfigError(
            f"{len(first)} and {len(second)} answers are not to the same questions: delete the "
            "records, and run the study again"
        )
    return [Pair(row.stream, row, theirs[row.key]) for row in first]


def paired_interval(lost: int, won: int, asked: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies over the same questions, as shares.

    lost, won: questions that only the reference, only the other candidate answers right. Agresti
    and Min, Statistics in Medicine 24 (2005), p. 729: half a question is added to each of the four
    cells (n = asked + 2, b = lost + 1/2, c = won + 1/2), then Wald's interval
    (c - b)/n +- z sqrt(b + c - (c - b)^2/n)/n. It has a width where no question changes, as Wald's
    own has not. Questions count as independent.
    """
    total, b, c = asked + 2, lost + 0.5, won + 0.5
    middle = (c - b) / total
    half = Z95 * (b + c - (c - b) ** 2 / total) ** 0.5 / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(pairs: Sequence[Pair], seed: int = 0) -> tuple[float, float]:
    """The same interval without independence of the questions of one stream: percentiles of the
    mean change when whole streams are drawn with replacement (the cluster bootstrap; Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). It has no width where no
    question changes."""
    streams = sorted({each.stream for each in pairs})
    place = {stream: index for index, stream in enumerate(streams)}
    changes, asked = np.zeros(len(streams)), np.zeros(len(streams))
    for each in pairs:
        changes[place[each.stream]] += each.change
        asked[place[each.stream]] += 1
    drawn = np.random.default_rng(seed).integers(len(streams), size=(RESAMPLES, len(streams)))
    means = changes[drawn].sum(axis=1) / asked[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def interval_over_things(pairs: Sequence[Pair]) -> tuple[float, float]:
    """`paired_interval` over the things that are asked about, each as one question: answers about
    one thing at several ages hardly vary by themselves. Cautious: a thing counts as lost, or as
    won, if that is so on balance over its questions."""
    things: dict[tuple[int, str], int] = {}
    for each in pairs:
        thing = each.stream, each.reference.shape
        things[thing] = things.get(thing, 0) + each.change
    lost, won = (sum(sign * change > 0 for change in things.values()) for sign in (-1, 1))
    return paired_interval(lost, won, len(things))


def compare(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Counts, and the difference of accuracy with its intervals in points. `within_goal`: whether
    all intervals lie within GOAL points around 0."""
    lost = sum(each.change < 0 for each in pairs)
    won = sum(each.change > 0 for each in pairs)
    intervals = {
        "interval, points": paired_interval(lost, won, len(pairs)),
        "interval over streams, points": bootstrap_interval(pairs),
        "interval over things, points": interval_over_things(pairs),
    }
    points = {name: [round(100 * end, 3) for end in ends] for name, ends in intervals.items()}
    return {
        "asked": len(pairs),
        "answers that differ": sum(each.other.answer != each.reference.answer for each in pairs),
        "right only in the reference": lost,
        "right only here": won,
        "difference, points": round(100 * (won - lost) / len(pairs), 3),
        **points,
        "within_goal": all(abs(end) <= GOAL for ends in points.values() for end in ends),
    }
