"""Delivery of alerts: each message is written to a spool, and a thread for each target sends it on
until it arrives."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vicort.runtime.alerts.back_off import BackOff
from vicort.runtime.alerts.channel import Channel
from vicort.runtime.alerts.courier import Courier
from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.mqtt_topics import check_topics
from vicort.runtime.alerts.outbox import Outbox
from vicort.runtime.alerts.shared_target import SharedTarget, shared_targets
from vicort.runtime.alerts.spool import Spool
from vicort.runtime.alerts.targets import (
    CommandTarget,
    JsonlTarget,
    MqttTarget,
    Target,
    WebhookTarget,
)
from vicort.runtime.argument_kinds import checked_whole
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown

logger = logging.getLogger(__name__)

LEAST_BYTES = 65_536  # of a spool
MOST_BYTES = 1 << 40


class Delivery:
    """Delivers the messages of alerts to their targets. Thread-safe."""

    def __init__(
        self,
        targets: Mapping[str, Sequence[Target]],
        spool: Path,
        *,
        spool_bytes: int,
        warn: Callable[[str], None],
        streams: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] = os.environ,
        back_off: BackOff | None = None,
    ) -> None:
        """Opens the spool and reads the secrets; nothing is sent before `start`.

        targets: by the name of the alert. spool: a file, which is made if there is none; what waits
        in it is delivered too. spool_bytes: how much may wait, over all targets. warn: called with
        one line, from any thread. streams: of each alert, so that a topic of MQTT that several of
        them would share is refused; None = not known. environment: that holds the secrets.

        Raises ConfigError: a variable that is not set, a package that is missing, a spool that
        another process uses, a target that an alert names twice, a topic of MQTT that two share.
        """
        check_topics(targets, streams or {})
        budget = checked_whole(spool_bytes, "spool_bytes", LEAST_BYTES, MOST_BYTES)
        credentials = Credentials(environment)
        shared = shared_targets(targets)
        channels = [_channel(each, credentials, spool) for each in shared]
        self._targets = {
            alert: [each.identities[alert] for each in shared if alert in each.alerts]
            for alert in targets
        }
        queues = {name: each.identity for each in shared for name in each.identities.values()}
        labels = {each.identity: each.label for each in shared}
        self._open_outbox = lambda: Outbox(Spool(spool, warn), labels, budget, warn, queues)
        self._outbox = self._open_outbox()
        self._late = threading.Lock()  # of what is sent after `close`
        self._couriers = [
            Courier(
                each.identity,
                each.label,
                channel,
                self._outbox,
                credentials,
                back_off or BackOff(),
                warn,
            )
            for each, channel in zip(shared, channels, strict=True)
        ]
        self._closed = False

    def start(self) -> None:
        """Start a thread for each target; alerts that name the same one share it. A target that
        cannot be reached is warned about once; its messages are kept and tried again."""
        for courier in self._couriers:
            courier.start()

    def send(self, message: Message) -> None:
        """Write a message to the spool for each target of its alert, and return. It waits for no
        receiver.

        After `close` too it is written to the spool, and delivered by the next run. Raises
        ConfigError for an alert without an entry in `targets`, and after `close` if the spool
        cannot be written; ValueError or TypeError for a body that is no JSON. If the spool cannot
        be written before, the message is kept in memory, and `state` says so.
        """
        if message.alert not in self._targets:
            raise ConfigError(
                f"no targets are known of alert {shown(message.alert)}: the alerts are "
                f"{shown(', '.join(self._targets))}"
            )
        identities = self._targets[message.alert]
        if not self._outbox.add(message, identities):
            self._send_late(message, identities)

    def _send_late(self, message: Message, identities: Sequence[str]) -> None:
        with self._late:
            outbox = self._open_outbox()
            outbox.add(message, identities)
            outbox.close()
        if outbox.state()["in_memory_only"]:
            raise ConfigError(
                f"an event of alert {shown(message.alert)} is lost: the delivery is closed, and "
                "the spool cannot be written"
            )

    def state(self) -> dict[str, Any]:
        """`targets`: counts by label, see docs/delivery.md. `spool`: how full it is, and why it
        cannot be written, if so."""
        return {
            "targets": {courier.label: courier.state() for courier in self._couriers},
            "spool": self._outbox.state(),
        }

    def close(self, seconds: float) -> None:
        """Try to deliver what waits for so many seconds at most; the rest stays in the spool. A
        second call does nothing."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + max(0.0, seconds)
        for courier in self._couriers:
            courier.finish(deadline)
        self._outbox.end()
        for courier in self._couriers:
            courier.join(deadline)
        self._outbox.close()
        if waiting := self._outbox.state()["waiting"]:
            logger.info("%s messages wait in the spool for the next start", waiting)


def _channel(shared: SharedTarget, credentials: Credentials, spool: Path) -> Channel:
    """Imports the channel's packages, which only its targets need."""
    target, label = shared.target, shared.label
    if isinstance(target, WebhookTarget):
        from vicort.runtime.alerts.webhook import WebhookChannel

        return WebhookChannel(target, label, credentials)
    if isinstance(target, MqttTarget):
        from vicort.runtime.alerts.mqtt import MqttChannel

        own = f"{spool.absolute()} {shared.identity}"
        return MqttChannel(target, shared.alerts, label, credentials, own)
    if isinstance(target, CommandTarget):
        from vicort.runtime.alerts.command import CommandChannel

        return CommandChannel(target, label, credentials)
    if isinstance(target, JsonlTarget):
        from vicort.runtime.alerts.jsonl import JsonlChannel

        return JsonlChannel(target)
    raise ConfigError(f"{shown(target)} is no target of an alert")
