"""Lengths of time in an alert file: `10s`, `500ms`, `2m`, `1h`, or a number of seconds."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator

UNITS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
}
_FORM = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s|min|m|h)")


def seconds_of(text: str) -> Fraction | None:
    """Seconds of a number with a unit; None for another text."""
    found = _FORM.fullmatch(text.strip())
    return Fraction(found[1]) * UNITS[found[2]] if found else None


def parse_seconds(value: Any) -> Any:
    """Seconds of such a text. What is no text is returned as it is. Raises ValueError, which does
    not show the text."""
    if not isinstance(value, str):
        return value
    if (seconds := seconds_of(value)) is None:
        raise ValueError("it is no length of time: write 10s, 500ms, 2m or 1h")
    return float(seconds)


Seconds = Annotated[float, BeforeValidator(parse_seconds)]
