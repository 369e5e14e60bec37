"""Limits on untrusted text: how much of it is read, and how much is shown in an error."""

from __future__ import annotations

import errno
import reprlib
from pathlib import Path
from typing import Any

MAX_VALUE = 200  # characters of a value in an error
MAX_STRING = 80  # characters of a string or a number inside it
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = MAX_STRING
_short.maxlevel = 3


def read_text(path: Path | str, max_bytes: int, encoding: str = "utf-8") -> str:
    """Read a text file. Raises OSError, also if it has more than max_bytes, and
    UnicodeDecodeError."""
    with Path(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes", str(path))
    return content.decode(encoding)


def shown(value: Any) -> str:
    """The shortened repr of a value, for an error."""
    try:
        text = _short.repr(value)
    except ValueError:  # Python does not convert integers of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def brief(error: BaseException) -> str:
    """The text of an error in one line, shortened."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return " ".join(line.split())[:MAX_VALUE] or type(error).__name__


def printable(text: str) -> str:
    """One line of text with escapes for what a terminal would obey or cannot be encoded: control
    characters, and bytes of file names that are not UTF-8."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8. Lone surrogates, which JSON and command lines may
    contain, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
