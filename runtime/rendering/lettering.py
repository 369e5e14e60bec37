"""Fonts that have the letters of a text, and text in lines that fit a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import ImageFont

from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import printable

# of the system, tried in this order where Pillow's own font lacks a letter
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
)
SAMPLE_SIZE = 16  # pixels, at which fonts are compared
NO_LETTER = "\U0010ffff"  # which no font has
MARKS = "ZCM"  # kinds of characters that have no shape of their own
CUT = "..."  # in every font


class Typeface:
    """A font of any size."""

    def __init__(self, path: str | None = None) -> None:
        """path: of its file, or a name that the system knows; None = Pillow's own. Raises OSError
        if there is no such font."""
        self._path = path
        self._fonts: dict[int, Any] = {}  # by size
        self._sample = self.at(SAMPLE_SIZE)
        self._box = _shape(self._sample, NO_LETTER)
        self._has: dict[str, bool] = {}

    def at(self, size: int) -> Any:
        """The font of Pillow whose letters are `size` pixels high."""
        if size not in self._fonts:
            self._fonts[size] = (
                ImageFont.load_default(size)
                if self._path is None
                else ImageFont.truetype(self._path, size)
            )
        return self._fonts[size]

    def missing(self, letters: Iterable[str]) -> set[str]:
        """Those of the letters that would be drawn as a box."""
        return {letter for letter in letters if not self._draws(letter)}

    def _draws(self, letter: str) -> bool:
        if letter not in self._has:
            mark = unicodedata.category(letter)[0] in MARKS
            self._has[letter] = mark or _shape(self._sample, letter) != self._box
        return self._has[letter]


def typeface(named: Path | None, letters: set[str]) -> tuple[Typeface, set[str]]:
    """The font to use, and the letters that it lacks: the one that is named, otherwise Pillow's own
    or the first of SYSTEM_FONTS that lacks the fewest.

    Raises ConfigError for a file that is no font.
    """
    if named is not None:
        face = named_typeface(named)
        return face, face.missing(letters)
    best = Typeface()
    lacks = best.missing(letters)
    for face in _system_typefaces():
        if not lacks:
            break
        if len(missing := face.missing(letters)) < len(lacks):
            best, lacks = face, missing
    return best, lacks


def named_typeface(path: Path) -> Typeface:
    """The font of a file. Raises ConfigError."""
    try:
        with path.open("rb"):
            return Typeface(str(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--render-font {printable(str(path))} is no font that can be read ({why}): name a "
            "TrueType or OpenType file, such as those that `fc-list` shows"
        ) from error


def _system_typefaces() -> Iterator[Typeface]:
    for name in SYSTEM_FONTS:
        try:
            yield Typeface(name)
        except OSError:  # the system has no such font
            continue


def _shape(font: Any, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words, and within those that are
    longer."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(line) > 1:
            kept = fitting(line, font, width)
            lines.append(line[:kept])
            line = line[kept:]
    return [*lines, line] if line else lines


def fitting(text: str, font: Any, width: int) -> int:
    """How many letters of a text, at least one, fit into `width` pixels."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def shortened(lines: list[str], most: int, font: Any, width: int) -> list[str]:
    """The first lines, at most `most`; where some are left out, the last one ends with CUT."""
    if len(lines) <= most:
        return lines
    kept = lines[:most]
    last = kept[-1]
    while last and font.getlength(last + CUT) > width:
        last = last[:-1]
    return [*kept[:-1], last + CUT]
