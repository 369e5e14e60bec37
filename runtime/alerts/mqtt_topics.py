"""The topics of MQTT: each alert of each stream must have its own, as the state there is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vicort.runtime.alerts.targets import MqttTarget, NotifyTarget
from vicort.runtime.errors import ConfigError


def level(name: str) -> str:
    """A name as one level of a topic."""
    return re.sub(r"[/+#\x00-\x1f]", "_", name)


def check_topics(
    targets: Mapping[str, Sequence[NotifyTarget]], streams: Mapping[str, Sequence[str]]
) -> None:
    """targets, streams: by the name of the alert. One without streams is of one stream.

    Raises ConfigError if the state of one would overwrite that of another.
    """
    owners: dict[tuple[str, int, str], tuple[str, str]] = {}
    for alert, named in targets.items():
        for target in named:
            if not isinstance(target, MqttTarget):
                continue
            for stream in streams.get(alert, (f"the stream of {alert}",)):
                topic = target.topic.replace("{alert}", level(alert)).replace(
                    "{stream}", level(stream)
                )
                place = (target.parts.hostname or "", target.port, topic)
                other = owners.setdefault(place, (alert, stream))
                if other != (alert, stream):
                    raise _shared(target, other, (alert, stream))


def _shared(target: MqttTarget, one: tuple[str, str], other: tuple[str, str]) -> ConfigError:
    if one[0] == other[0]:
        who, missing = f"streams {one[1]} and {other[1]} of alert {one[0]}", "{stream}"
    else:
        who, missing = f"alerts {one[0]} and {other[0]}", "{alert}"
    return ConfigError(
        f"{target.place()}: {who} would overwrite each other's state there: add {missing} to the "
        f"topic, as {target.topic}/{missing}"
    )
