"""Text from strangers: no more of it is read, or shown in an error, than there can be use for."""

from __future__ import annotations

import errno
import reprlib
from pathlib import Path
from typing import Any

MAX_VALUE = 200  # characters of a value in an error
MAX_STRING = 80  # and of a string or a number in it
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = MAX_STRING
_short.maxlevel = 3


def read_text(path: Path | str, most: int, encoding: str = "utf-8") -> str:
    """A text file of at most so many bytes. Raises OSError, which says so if it is larger, and
    UnicodeDecodeError."""
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content.decode(encoding)


def shown(value: Any) -> str:
    """A value as Python writes it, shortened, for an error."""
    try:
        text = _short.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def brief(error: BaseException) -> str:
    """What an error says, shortened, in one line."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return " ".join(line.split())[:MAX_VALUE] or type(error).__name__


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair, which JSON and command lines can
    hold, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
