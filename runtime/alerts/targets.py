"""Where an alert is delivered: the entries of `notify` in an alert file, one key of which names the
kind.

    notify:
      - {webhook: https://example.org/hook, secret_env: HOOK_SECRET}
      - {mqtt: mqtt://user@broker:1883/vicort/front/parcel, password_env: MQTT_PASSWORD}
      - {command: ./notify.sh}
      - {jsonl: alerts.jsonl}
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from vicort.runtime.alerts.addresses import is_private, literal_address
from vicort.runtime.alerts.seconds import Seconds
from vicort.runtime.redact import redact
from vicort.runtime.safe_text import shown

MAX_TIMEOUT = 600  # seconds
MAX_URL = 2048  # characters
HTTP_PORTS = {"http": 80, "https": 443}
MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}
# what a topic may name, replaced in each message
PLACES = ("{alert}", "{stream}")
# set by the webhook itself
OWN_HEADERS = {"host", "content-type", "content-length", "connection", "idempotency-key"} | {
    f"webhook-{name}" for name in ("id", "timestamp", "signature")
}
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):(?!\d)")

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # of the environment
Attach = Literal["attach", "none"]


class NotifyTarget(BaseModel):
    """The base class. `kind`: the key that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]

    def place(self) -> str:
        """What messages call it: without user, password, path of a webhook, and arguments."""
        raise NotImplementedError

    def location(self) -> Any:
        """What tells two targets of one kind apart."""
        return getattr(self, self.kind)

    def identity(self, alert: str | None = None) -> str:
        """The name of this target in the spool, the same in every run, whatever its options are, so
        that what waits is found when one is mended. It shows nothing. alert: makes it another one
        for each alert."""
        content = json.dumps([alert, self.kind, self.location()])
        return hashlib.sha256(content.encode()).hexdigest()[:24]


class WebhookTarget(NotifyTarget):
    """An HTTP server that takes POST requests.

    secret_env: the variable with the secret that signs requests. headers_env: header names with
    variables that hold their values. timeout: seconds of a whole try. picture: `attach` sends it as
    base64. allow_private: whether addresses that are not public are allowed. ca_file: certificates
    to trust instead of the system's.
    """

    kind: ClassVar[str] = "webhook"
    webhook: str = Field(max_length=MAX_URL)
    secret_env: Variable | None = None
    headers_env: dict[str, Variable] = {}
    timeout: Seconds = Field(default=10, ge=0.1, le=MAX_TIMEOUT)
    picture: Attach = "attach"
    allow_private: bool = False
    ca_file: Path | None = None

    @field_validator("webhook")
    @classmethod
    def _url(cls, url: str) -> str:
        parts = _parts(url, HTTP_PORTS)
        if "@" in parts.netloc:
            raise ValueError(
                "a URL with a user or a password is not allowed: name a variable that "
                "holds the whole header, as headers_env: {Authorization: HOOK_AUTHORIZATION}"
            )
        return url

    @field_validator("headers_env")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if not _HEADER.fullmatch(name) or name.lower() in OWN_HEADERS:
                known = shown(name) if name.lower() in OWN_HEADERS else "a key"
                raise ValueError(f"{known} is no header that may be set")
        return headers

    def model_post_init(self, context: Any) -> None:
        address = literal_address(self.parts.hostname or "")
        if address and not self.allow_private and is_private(address):
            raise ValueError(f"{address} is a private address: set allow_private: true to allow it")

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.webhook)

    @property
    def port(self) -> int:
        return self.parts.port or HTTP_PORTS[self.parts.scheme]

    def place(self) -> str:
        """The path too may be a secret, as in those of Slack, Discord and Home Assistant."""
        return f"webhook {self.parts.scheme}://{_server(self.parts)}"


class MqttTarget(NotifyTarget):
    """An MQTT broker, `mqtt://[USER@]HOST[:PORT]/TOPIC` or `mqtts://`, which is with TLS.

    The topic may hold {alert} and {stream}. password_env: the variable with the password.
    discovery: `homeassistant` announces each alert to Home Assistant. protocol: of MQTT. timeout:
    seconds of a whole try.
    """

    kind: ClassVar[str] = "mqtt"
    mqtt: str = Field(max_length=MAX_URL)
    password_env: Variable | None = None
    discovery: Literal["homeassistant", "none"] = "none"
    discovery_prefix: str = Field(default="homeassistant", pattern=r"^[^+#\x00-\x1f]{1,100}$")
    protocol: Literal["5", "3.1.1"] = "5"
    timeout: Seconds = Field(default=10, ge=0.1, le=MAX_TIMEOUT)
    picture: Attach = "attach"
    ca_file: Path | None = None

    @field_validator("protocol", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return "5" if type(value) is int and value == 5 else value

    @field_validator("mqtt")
    @classmethod
    def _url(cls, url: str) -> str:
        parts = _parts(url, MQTT_PORTS)
        if ":" in parts.netloc.rpartition("@")[0]:
            raise ValueError(
                "a URL with a password is not allowed: name a variable that holds it in "
                "password_env"
            )
        topic = unquote(parts.path).strip("/")
        rest = topic
        for each in PLACES:
            rest = rest.replace(each, "")
        fixed = topic.partition("{")[0].rstrip("/")
        if not fixed or re.search(r"[+#\x00-\x1f{}]", rest) or parts.query or "#" in url:
            raise ValueError(
                "it has no topic that is allowed: write one without + and # after the host, as "
                "mqtt://host/vicort/front/parcel or mqtt://host/vicort/{stream}/{alert}"
            )
        return url

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.mqtt)

    @property
    def port(self) -> int:
        return self.parts.port or MQTT_PORTS[self.parts.scheme]

    @property
    def user(self) -> str | None:
        return unquote(self.parts.username) if self.parts.username else None

    @property
    def topic(self) -> str:
        return unquote(self.parts.path).strip("/")

    def place(self) -> str:
        return f"mqtt {self.parts.scheme}://{_server(self.parts)}/{self.topic}"


class CommandTarget(NotifyTarget):
    """A program that is started for each event, without a shell.

    command: a list, or a line that is split as a shell does. environment: variables of this process
    that it gets besides the usual ones. timeout: seconds until it is killed.
    """

    kind: ClassVar[str] = "command"
    command: tuple[str, ...]
    environment: tuple[Variable, ...] = ()
    timeout: Seconds = Field(default=30, ge=0.1, le=MAX_TIMEOUT)
    picture: Attach = "attach"

    @field_validator("command", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        try:
            words = shlex.split(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{error}: write a list of words") from error
        if isinstance(words, list | tuple) and (not words or not words[0]):
            raise ValueError("it is empty: name a program")
        if isinstance(words, list | tuple) and any("\0" in str(word) for word in words):
            raise ValueError("a word has a zero byte, which is not allowed")
        return words

    def place(self) -> str:
        return f"command {redact(self.command[0])}"


class JsonlTarget(NotifyTarget):
    """A file to which each event is appended as a line of JSON."""

    kind: ClassVar[str] = "jsonl"
    jsonl: str = Field(min_length=1, max_length=4096)

    def place(self) -> str:
        return f"jsonl {redact(self.jsonl)}"


KINDS: dict[str, type[NotifyTarget]] = {
    each.kind: each for each in (WebhookTarget, MqttTarget, CommandTarget, JsonlTarget)
}


def _kind(value: Any) -> str | None:
    """The one key that names the kind; None if there is none, or more than one."""
    if isinstance(value, NotifyTarget):
        return value.kind
    named = [key for key in KINDS if isinstance(value, dict) and key in value]
    return named[0] if len(named) == 1 else None


Target = Annotated[
    Annotated[WebhookTarget, Tag("webhook")]
    | Annotated[MqttTarget, Tag("mqtt")]
    | Annotated[CommandTarget, Tag("command")]
    | Annotated[JsonlTarget, Tag("jsonl")],
    Discriminator(
        _kind,
        custom_error_type="notify_kind",
        custom_error_message="Input should have exactly one of the keys webhook, mqtt, command, "
        "jsonl",
    ),
]


def _parts(url: str, ports: dict[str, int]) -> SplitResult:
    """Raises ValueError, which shows nothing of the URL."""
    schemes = " or ".join(f"{scheme}://" for scheme in ports)
    if (found := _SCHEME.match(url)) and found[1].lower() not in ports:
        raise ValueError(f"its scheme is not allowed: use {schemes}")
    try:
        parts = urlsplit(url)
        wrong = not parts.hostname or parts.port == 0 or parts.scheme not in ports
    except ValueError:
        wrong = True
    if wrong or any(not 33 <= ord(letter) < 127 for letter in url):
        raise ValueError(f"it is no URL: write {schemes}, a host and a path, in ASCII")
    return parts


def _server(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]
