"""The rule of an alert, chosen on streams that the result does not use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from vicort.benchmarks.evaluation.alert_readings import Readings
from vicort.benchmarks.evaluation.alert_scores import HOUR, AlertScore, match, together
from vicort.benchmarks.evaluation.alert_streams import AlertStream
from vicort.runtime.alerts.rule import AlertRule, Enough

GOAL_F1 = 0.97  # at least
GOAL_DELAY = 1.5  # seconds, 95th percentile, at most
GOAL_FALSE = 1.0  # an hour of stream, at most
ABOVE = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99)
BELOW = (0.1, 0.2, 0.35, 0.5)
FIRE = (Enough(1, 1), Enough(1, 2), Enough(2, 2), Enough(2, 3), Enough(3, 3), Enough(3, 4))
CLEAR = (Enough(2, 2), Enough(3, 3), Enough(5, 5))


@dataclass(frozen=True)
class HeardStream:
    """A stream, and what its alerts answered."""

    stream: AlertStream
    readings: Readings


@dataclass(frozen=True)
class TriedRule:
    rule: AlertRule
    score: AlertScore  # of all alerts together

    @property
    def shares(self) -> tuple[float, float, float]:
        """F1's distance from 1, the delay and the false alarms, each in proportion to its goal: 1
        or less reaches it."""
        score = self.score
        wrong, delay = 1 - (score.f1 or 0.0), score.delay(95)
        return (
            wrong / (1 - GOAL_F1),
            math.inf if delay is None else delay / GOAL_DELAY,
            (score.false_an_hour or 0.0) / GOAL_FALSE,
        )

    @property
    def reaches_goals(self) -> bool:
        return max(self.shares) <= 1


def rules() -> Iterator[AlertRule]:
    """Those that are tried; of equal ones the first is chosen."""
    for fire, clear, above, below in product(FIRE, CLEAR, ABOVE, BELOW):
        if below <= above:
            yield AlertRule(above, fire, below, clear)


def choose(heard: Sequence[HeardStream], shapes: Sequence[str]) -> TriedRule:
    """The best rule on these streams, one for all alerts."""
    return best([TriedRule(rule, together_of(heard, shapes, rule)) for rule in rules()])


def best(tried: Sequence[TriedRule]) -> TriedRule:
    """Of the rules that reach every goal the one with the fewest false alarms, and of these the one
    with the highest F1. If none reaches them, the one with the lowest sum of its figures, each in
    proportion to its goal. Of equal ones the one that wants the most answers before it clears, then
    before it fires: such an alert is the least likely to change by chance."""
    able = [each for each in tried if each.reaches_goals]

    def cost(each: TriedRule) -> tuple[float, ...]:
        wrong, _, false = each.shares
        figures = (false, wrong) if able else (sum(each.shares),)
        return (
            *(round(figure, 6) for figure in figures),
            -each.rule.clear.count,
            -each.rule.fire.count,
        )

    return min(able or tried, key=cost)


def together_of(heard: Iterable[HeardStream], shapes: Sequence[str], rule: AlertRule) -> AlertScore:
    return together(list(by_alert(heard, shapes, rule).values()))


def by_alert(
    heard: Iterable[HeardStream], shapes: Sequence[str], rule: AlertRule
) -> dict[str, AlertScore]:
    """Of each alert, over all streams."""
    fired = (
        (each.stream, {shape: each.readings.fired(shape, rule) for shape in shapes})
        for each in heard
    )
    return score_alerts(fired, shapes)


def score_alerts(
    fired: Iterable[tuple[AlertStream, Mapping[str, Sequence[float]]]], shapes: Sequence[str]
) -> dict[str, AlertScore]:
    """fired: of each stream the seconds at which each alert fired."""
    scores = {shape: AlertScore() for shape in shapes}
    for stream, of_alert in fired:
        for shape in shapes:
            matching = match(of_alert[shape], stream.stretches(shape))
            scores[shape].add(AlertScore.of(matching, stream.duration / HOUR))
    return scores
