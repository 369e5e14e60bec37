"""The figures of standing alerts: each system's rule, and how good its alerts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vicort.benchmarks.evaluation.alert_evaluation import AlertPlan, AlertWatcher
from vicort.benchmarks.evaluation.alert_scores import TOLERANCE, AlertScore, match, together
from vicort.benchmarks.evaluation.alert_streams import AlertStream
from vicort.benchmarks.evaluation.alert_tuning import (
    GOAL_DELAY,
    GOAL_F1,
    GOAL_FALSE,
    TriedRule,
    choose,
    score_alerts,
)
from vicort.runtime.alerts.rule import AlertRule
from vicort.runtime.policies.system import System

ALL = "all alerts"
Fired = Sequence[tuple[AlertStream, Mapping[str, Sequence[float]]]]


@dataclass(frozen=True)
class AlertFigures:
    """Of one system."""

    tried: TriedRule | None  # None of a system that speaks by itself
    alerts: dict[str, AlertScore]
    fired: Fired

    @classmethod
    def of(cls, name: str, system: System, plan: AlertPlan, watcher: AlertWatcher) -> AlertFigures:
        shapes = plan.standing.shapes
        if system.speaks.by_itself:
            fired = watcher.fired(name, plan.test)
            return cls(None, score_alerts(fired, shapes), fired)
        tried = choose(watcher.heard(name, plan.validation), shapes)
        fired = [
            (each.stream, {shape: each.readings.fired(shape, tried.rule) for shape in shapes})
            for each in watcher.heard(name, plan.test)
        ]
        return cls(tried, score_alerts(fired, shapes), fired)

    @property
    def together(self) -> AlertScore:
        return _whole(self.alerts)

    def to_json(self) -> dict[str, Any]:
        tried = self.tried
        return {
            "rule": None if tried is None else _rule_json(tried.rule),
            "on validation streams": None if tried is None else tried.score.to_json(),
            ALL: self.together.to_json(),
            "alerts": {shape: score.to_json() for shape, score in self.alerts.items()},
            "streams": {
                stream.name: together(
                    list(score_alerts([(stream, of)], list(of)).values())
                ).to_json()
                for stream, of in self.fired
            },
            "errors": [error for stream, of in self.fired for error in _errors(stream, of)],
        }


def _whole(alerts: Mapping[str, AlertScore]) -> AlertScore:
    return together(list(alerts.values()))


def _errors(stream: AlertStream, fired: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """False alarms and misses of a stream, with what was visible then."""
    found = []
    for shape, times in fired.items():
        matching = match(times, stream.stretches(shape))
        moments = [("false alarm", at) for at in matching.false_at]
        moments += [("missed", start) for start, _ in matching.missed]
        for kind, at in moments:
            seen = [f"{each.color} {each.shape}" for each in stream.things if _is_seen(each, at)]
            look = stream.look_at(at)
            found.append(
                {
                    "stream": stream.name,
                    "alert": shape,
                    "error": kind,
                    "at": round(at, 3),
                    "visible": seen,
                    "look": [look.background, look.finish, look.palette],
                }
            )
    return sorted(found, key=lambda each: each["at"])


def _is_seen(thing: Any, at: float) -> bool:
    return thing.start - TOLERANCE <= at <= thing.end + TOLERANCE


def _rule_json(rule: AlertRule) -> dict[str, Any]:
    return {
        "fire": {"above": rule.above, "for": str(rule.fire)},
        "clear": {"below": rule.below, "for": str(rule.clear)},
    }


def table(figures: Mapping[str, AlertFigures]) -> str:
    """A row for each system, and one for each of its alerts."""
    lines = [
        "system",
        "  alert         hours  events  precision  recall     F1  delay p50    p95  false an hour",
    ]
    for name, each in figures.items():
        lines += ["", name]
        if each.tried is not None:
            rule, score = each.tried.rule, each.tried.score
            lines += [
                f"  rule: fire above {rule.above:g} for {rule.fire}, "
                f"clear below {rule.below:g} for {rule.clear}",
                _row("(validation)", score),
            ]
        lines.append(_row(ALL, each.together))
        lines += [_row(shape, score) for shape, score in each.alerts.items()]
    lines += [
        "",
        f"goals: F1 at least {GOAL_F1:g}, delay p95 at most {GOAL_DELAY:g} s, at most "
        f"{GOAL_FALSE:g} false alarm an hour of stream, all alerts together",
        f"precision, recall, F1: per cent. An alert may fire from the first moment until "
        f"{TOLERANCE:g} s after the last one at which its shape is visible; a second firing is a "
        "false alarm. Delay: from that first moment to the newest frame of the answer, in seconds",
    ]
    return "\n".join(lines)


def _row(name: str, score: AlertScore) -> str:
    return (
        f"  {name:13} {score.hours:5.1f}  {score.events:6}  {_percent(score.precision):>9}  "
        f"{_percent(score.recall):>6}  {_percent(score.f1):>5}  {_seconds(score.delay(50)):>9}  "
        f"{_seconds(score.delay(95)):>5}  {_seconds(score.false_an_hour):>13}"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
