"""What Home Assistant is sent so that it makes entities of an alert by itself.

MQTT discovery: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery, with the fields of
the integrations `binary_sensor.mqtt` and `image.mqtt` there.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

ONLINE, OFFLINE = "online", "offline"
ON, OFF = "ON", "OFF"


def announcements(
    prefix: str, topic: str, availability: str, alert: str, stream: str | None, *, picture: bool
) -> dict[str, dict[str, Any]]:
    """The retained messages that announce an alert, by their topic.

    prefix: of discovery, `homeassistant` unless that was changed. topic: of the alert's events.
    stream: whose device gets the entities; None = one device for all. picture: whether there is an
    entity that shows the picture.
    """
    name = _name(alert if stream is None else f"{stream}_{alert}")
    name += "_" + hashlib.sha256(topic.encode()).hexdigest()[:8]
    common = {
        "availability_topic": availability,
        "payload_available": ONLINE,
        "payload_not_available": OFFLINE,
        "device": {
            "identifiers": ["vicort" if stream is None else f"vicort_{_name(stream)}"],
            "name": "vicort" if stream is None else f"vicort {stream}",
            "manufacturer": "vicort",
        },
        "origin": {"name": "vicort"},
    }
    found = {
        f"{prefix}/binary_sensor/vicort/{name}/config": {
            "name": alert,
            "unique_id": f"vicort_{name}",
            "state_topic": f"{topic}/state",
            "payload_on": ON,
            "payload_off": OFF,
            "json_attributes_topic": f"{topic}/attributes",
            "qos": 1,
            **common,
        }
    }
    if picture:
        found[f"{prefix}/image/vicort/{name}/config"] = {
            "name": f"{alert} picture",
            "unique_id": f"vicort_{name}_picture",
            "image_topic": f"{topic}/picture",
            "content_type": "image/jpeg",
            **common,
        }
    return found


def _name(text: str) -> str:
    """As parts of discovery topics may be spelled."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", text)
