"""Numbers on the command line of vicort-eval."""

from __future__ import annotations

import math
from fractions import Fraction

from vicort.runtime.command_line import parse_rate
from vicort.runtime.errors import ConfigError


def rate_of(option: str, text: str | None) -> Fraction | None:
    if text is None:
        return None
    return parse_rate(option, text, "give a number above 0, such as 2, 0.5 or 30000/1001")


def seconds_of(option: str, text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{option} {text} is no time: give a number of seconds above 0")
    return Fraction(text)
