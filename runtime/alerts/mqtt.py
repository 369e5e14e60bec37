"""Publishes each message to an MQTT broker, and says there whether this process is alive."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from vicort.runtime.alerts import home_assistant
from vicort.runtime.alerts.channel import NotDelivered
from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.message import Message, json_bytes
from vicort.runtime.alerts.mqtt_topics import level
from vicort.runtime.alerts.targets import MqttTarget
from vicort.runtime.alerts.tls import tls_context
from vicort.runtime.errors import ConfigError
from vicort.runtime.packages import missing_package

if TYPE_CHECKING:
    from paho.mqtt.client import Client

KEEP_ALIVE = 30  # seconds between two signs of life
# reason codes of MQTT 5 for a message that the broker can never take: topic name invalid, packet
# too large, payload format invalid
REFUSED = (144, 149, 153)


class Publication(NamedTuple):
    topic: str
    payload: bytes
    retain: bool


class MqttChannel:
    """One connection, which stays open between messages. A message counts as delivered when the
    broker has acknowledged all of its parts (QoS 1). A connection that failed is not used again, so
    that nothing waits in it."""

    def __init__(
        self,
        target: MqttTarget,
        alerts: Sequence[str],
        label: str,
        credentials: Credentials,
        own: str,
    ) -> None:
        """alerts: that use this target. own: the same in every run, and another one in each
        process; it makes the client's name.

        Raises ConfigError if the variable of the password is not set, or paho-mqtt is not
        installed.
        """
        try:
            from paho.mqtt import client
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{label}: MQTT needs the extra `alerts` of vicort: "
                f"{missing_package(error) or error}"
            ) from error
        self._paho = client
        self._target = target
        self._alerts = alerts
        self._credentials = credentials
        self._password = (
            credentials.read(target.password_env, "password_env", label)
            if target.password_env
            else None
        )
        self._tls = tls_context(target.ca_file, label) if target.parts.scheme == "mqtts" else None
        own = f"{socket.gethostname()} {own}"
        self._name = "vicort-" + hashlib.sha256(own.encode()).hexdigest()[:16]
        # of the whole connection, so that it has no place for a stream
        self._availability = target.topic.partition("{")[0].rstrip("/") + "/availability"
        self._connection: BrokerConnection | None = None
        self._announced: set[tuple[str, str]] = set()  # topics and alerts

    @property
    def timeout(self) -> float:
        return self._target.timeout

    def check(self, seconds: float) -> None:
        self.keep(seconds)

    def keep(self, seconds: float) -> None:
        self._connected(time.monotonic() + seconds)

    def deliver(self, message: Message, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        connection = self._connected(deadline)
        topic = self._topic(message.alert).replace("{stream}", level(message.stream))
        parts = []
        if (topic, message.alert) not in self._announced:
            stream = message.stream if "{stream}" in self._target.topic else None
            parts += self._announcement(topic, message.alert, stream)
        parts += self._parts(message, topic)
        connection.publish(parts, deadline)
        self._announced.add((topic, message.alert))

    def abort(self) -> None:
        if connection := self._connection:
            connection.cut()

    def close(self) -> None:
        """Says that this process is gone, if it is connected."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(NotDelivered):
            gone = Publication(self._availability, home_assistant.OFFLINE.encode(), True)
            connection.publish([gone], time.monotonic() + 1.0)
        connection.leave()

    def _connected(self, deadline: float) -> BrokerConnection:
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connection is not None:
            self._connection.cut()
            self._connection = None
        self._announced.clear()
        connection = BrokerConnection(self._client(), self._credentials)
        self._connection = connection
        connection.open(self._target.parts.hostname or "", self._target.port, deadline)
        parts = [Publication(self._availability, home_assistant.ONLINE.encode(), True)]
        if "{stream}" not in self._target.topic:
            for alert in self._alerts:
                parts += self._announcement(self._topic(alert), alert, None)
                self._announced.add((self._topic(alert), alert))
        connection.publish(parts, deadline)
        return connection

    def _client(self) -> Client:
        paho, five = self._paho, self._target.protocol == "5"
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=self._name,
            clean_session=None if five else True,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        if self._target.user is not None:
            client.username_pw_set(self._target.user, self._password)
        if self._tls:
            client.tls_set_context(self._tls)
        client.will_set(self._availability, home_assistant.OFFLINE, qos=1, retain=True)
        return client

    def _topic(self, alert: str) -> str:
        return self._target.topic.replace("{alert}", level(alert))

    def _announcement(self, topic: str, alert: str, stream: str | None) -> list[Publication]:
        if self._target.discovery == "none":
            return []
        found = home_assistant.announcements(
            self._target.discovery_prefix,
            topic,
            self._availability,
            alert,
            stream,
            picture=self._target.picture == "attach",
        )
        return [Publication(name, json_bytes(each), True) for name, each in found.items()]

    def _parts(self, message: Message, topic: str) -> list[Publication]:
        """The state comes after what belongs to it, so that who sees it change finds that."""
        document = json_bytes(message.document())
        state = home_assistant.ON if message.state == "fired" else home_assistant.OFF
        parts = []
        if message.picture and self._target.picture == "attach":
            parts.append(Publication(f"{topic}/picture", message.picture, True))
        return [
            *parts,
            Publication(f"{topic}/attributes", document, True),
            Publication(f"{topic}/state", state.encode(), True),
            Publication(topic, document, False),
        ]


class BrokerConnection:
    """A client of paho with its thread, from its connection to the end of that."""

    def __init__(self, client: Client, credentials: Credentials) -> None:
        self._client = client
        self._credentials = credentials
        self._changed = threading.Condition()
        self._answer: Any = None  # the reason code of CONNACK
        self._acknowledged: dict[int, Any] = {}  # reason codes by number of the message
        self._ended: str | None = None  # why
        self._too_large = False
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect

    @property
    def usable(self) -> bool:
        return self._ended is None and self._answer is not None and not self._answer.is_failure

    def open(self, host: str, port: int, deadline: float) -> None:
        """Raises NotDelivered unless the broker has taken the connection."""
        self._client.connect_timeout = max(0.1, deadline - time.monotonic())
        try:
            self._client.connect(host, port, KEEP_ALIVE)
        except ssl.SSLCertVerificationError as error:
            raise NotDelivered(f"its certificate is not trusted: {error.verify_message}") from error
        except TimeoutError as error:
            raise NotDelivered("no connection in time") from error
        except socket.gaierror as error:
            raise NotDelivered(f"{host} is not found") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or self._credentials.reason(error)
            raise NotDelivered(str(reason).lower()) from error
        self._client.loop_start()
        with self._changed:
            self._wait(lambda: self._answer is not None, deadline)
            if self._answer.is_failure:
                answer = self._answer
                self._ended = f"it refuses the connection: {answer}"
                raise NotDelivered(self._ended)

    def publish(self, parts: Sequence[Publication], deadline: float) -> None:
        """Returns when the broker has acknowledged all of them. Raises NotDelivered."""
        numbers = []
        for part in parts:
            sent = self._client.publish(part.topic, part.payload, qos=1, retain=part.retain)
            numbers.append(sent.mid)
        with self._changed:
            try:
                self._wait(lambda: all(n in self._acknowledged for n in numbers), deadline)
            finally:
                codes = [self._acknowledged.pop(number, None) for number in numbers]
        for part, code in zip(parts, codes, strict=True):
            if code is not None and code.is_failure:
                raise NotDelivered(
                    f"it answered {code} to {part.topic}", refused=code.value in REFUSED
                )

    def cut(self) -> None:
        """End the connection as a failure does: the broker publishes the last will."""
        with self._changed:
            self._ended = self._ended or "the connection was cut off"
            self._changed.notify_all()
        connection = self._client.socket()
        if connection is not None:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # type: ignore[arg-type]
        self._client.loop_stop()

    def leave(self) -> None:
        """End the connection in order: the broker forgets the last will."""
        self._client.disconnect()
        with self._changed:
            self._changed.wait_for(lambda: self._ended is not None, 1.0)
        self.cut()

    def _wait(self, done: Any, deadline: float) -> None:
        """Held: the condition."""
        self._changed.wait_for(
            lambda: done() or self._ended is not None, max(0.0, deadline - time.monotonic())
        )
        if done():
            return
        if self._ended is None:
            self._ended = "no answer in time"
        raise NotDelivered(self._ended, refused=self._too_large)

    def _on_connect(self, client: Any, data: Any, flags: Any, code: Any, properties: Any) -> None:
        with self._changed:
            self._answer = code
            self._changed.notify_all()

    def _on_publish(self, client: Any, data: Any, number: int, code: Any, properties: Any) -> None:
        with self._changed:
            self._acknowledged[number] = code
            self._changed.notify_all()

    def _on_disconnect(
        self, client: Any, data: Any, flags: Any, code: Any, properties: Any
    ) -> None:
        with self._changed:
            self._too_large = getattr(code, "value", 0) in REFUSED
            self._ended = self._ended or f"the connection was lost: {code}"
            self._changed.notify_all()
