"""Limits on untrusted text: how much of it is read, and how much is shown in an error."""

from __future__ import annotations

import errno
import re
import reprlib
import sys
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

from vicort.runtime.redact import redact

MAX_VALUE = 200  # characters of a value in an error
MAX_STRING = 80  # characters of a string or a number inside it
# what terminals obey, but for line breaks and tabs; what some take for a line break; what turns the
# direction of text; and what cannot be encoded as UTF-8
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
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
    text = printable(" ".join(text.split()) if "\n" in text else text)
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


def without_controls(text: str) -> str:
    """Text of any number of lines, with escapes for control characters, also those that turn the
    direction of text, and for lone surrogates."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def lines_of(text: str) -> list[str]:
    """The lines of a text. They end with LF or CR LF, and with nothing else that Unicode takes for
    a line break, because a JSON string may hold those as they are."""
    return text.replace("\r\n", "\n").split("\n")


def print_safely(*lines: str, file: TextIO | None = None) -> None:
    """Print lines that may hold names and values of users, of files, and of strangers: without
    control characters, and without credentials. file: None = stdout."""
    for line in lines:
        # a URL ends at white space, so that what is white space is escaped first
        print(redact(printable(line)), file=file or sys.stdout, flush=True)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is a real number, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8. Lone surrogates, which JSON and command lines may
    contain, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
