"""Arguments of Python callers: a value of a wrong kind is refused in one line before it is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import is_real, is_whole, shown


def check_kind(value: Any, kinds: type | tuple[type, ...], name: str, allowed: str) -> None:
    """Raises ConfigError unless a value is of one of these types. allowed: what to give."""
    if not isinstance(value, kinds):
        raise wrong(value, name, allowed)


def check_functions(**values: Any) -> None:
    """Raises ConfigError for a value that is neither None nor can be called."""
    for name, value in values.items():
        if value is not None and not callable(value):
            raise wrong(value, name, "a function, or None")


def check_flags(**values: Any) -> None:
    """Raises ConfigError for a value that is neither True nor False."""
    for name, value in values.items():
        check_kind(value, (bool, np.bool_), name, "True or False")


def check_choice(value: Any, choices: Sequence[str], name: str) -> None:
    if not isinstance(value, str) or value not in choices:
        raise wrong(value, name, f"one of {', '.join(choices)}")


def checked_whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number in a range, of Python or NumPy, as Python's. Raises ConfigError."""
    if not is_whole(value) or not least <= value <= most:
        raise wrong(value, name, f"a whole number from {least} to {most}")
    return int(value)


def checked_real(value: Any, name: str, least: float, most: float) -> float:
    """A finite number in a range, as Python's. Raises ConfigError."""
    if not is_real(value) or not least <= value <= most:  # not for NaN
        raise wrong(value, name, f"a number from {least:g} to {most:g}")
    return float(value)


def checked_path(value: Any, name: str, allowed: str) -> Path:
    """The path that a string or a path object names. Raises ConfigError."""
    return Path(checked_name(value, name, allowed))


def checked_name(value: Any, name: str, allowed: str) -> str:
    """The text of a string or a path object, which may name a file. Raises ConfigError."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or "\0" in text:
        raise wrong(value, name, allowed)
    return text


def wrong(value: Any, name: str, allowed: str) -> ConfigError:
    return ConfigError(f"{name} is {shown(value)}: give {allowed}")
