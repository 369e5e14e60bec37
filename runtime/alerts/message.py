"""What is delivered of an alert, and the JSON that every receiver gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Message:
    """One event of an alert, as it is delivered.

    key: the idempotency key, another one for each event, and the same in every try. alert, stream:
    names in the alert file. body: the event in plain types, as JSON takes them. picture: a JPEG
    file.
    """

    key: str
    alert: str
    stream: str
    state: Literal["fired", "cleared"]
    body: dict[str, Any]
    picture: bytes | None = None

    def document(self) -> dict[str, Any]:
        """The fields of the event, with those that name it."""
        named = {
            "key": self.key,
            "alert": self.alert,
            "stream": self.stream,
            "state": self.state,
        }
        return named | self.body | named


def json_bytes(document: dict[str, Any]) -> bytes:
    """One line of JSON in UTF-8, without its end. Lone surrogates become escapes. Raises ValueError
    for numbers that JSON has not, and TypeError for other types."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
