"""Targets that several alerts name, which then share one thread, one order and one warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vicort.runtime.alerts.targets import NotifyTarget
from vicort.runtime.errors import ConfigError


@dataclass
class SharedTarget:
    """label: for people, another one for each."""

    target: NotifyTarget
    alerts: list[str] = field(default_factory=list)
    label: str = ""

    @property
    def identity(self) -> str:
        """The name of its queue in this run."""
        return self.target.identity(self.alerts[0])

    @property
    def identities(self) -> dict[str, str]:
        """In the spool, by alert: those of an alert stay whatever other alerts there are."""
        return {alert: self.target.identity(alert) for alert in self.alerts}


def shared_targets(named: Mapping[str, Sequence[NotifyTarget]]) -> list[SharedTarget]:
    """The targets of alerts, those with the same options as one.

    Raises ConfigError if an alert names a target twice.
    """
    found: list[SharedTarget] = []
    for alert, targets in named.items():
        for target in targets:
            alike = [each for each in found if each.target.identity() == target.identity()]
            if any(alert in each.alerts for each in alike):
                raise ConfigError(
                    f"{alert}: {target.place()} is named twice: remove one of the two"
                )
            same = next((each for each in alike if each.target == target), None)
            if same is None:
                same = SharedTarget(target)
                found.append(same)
            same.alerts.append(alert)
    labels: set[str] = set()
    for each in found:
        who = each.alerts[0]
        if len(each.alerts) > 1:
            who += f" and {len(each.alerts) - 1} more"
        each.label = label = f"{who}: {each.target.place()}"
        number = 2
        while each.label in labels:
            each.label = f"{label} ({number})"
            number += 1
        labels.add(each.label)
    return found
