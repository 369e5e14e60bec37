"""Notes as a translucent plate at the bottom of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vicort.runtime.rendering.lettering import Typeface, shortened, wrapped
from vicort.runtime.rendering.notes import Note

SHARE = 3  # a plate takes at most one part of so many of the picture's height
MIN_LINES = 2  # but it has so many lines
# letters as a share of the picture's height and of its width, the smaller one, and in pixels
BY_HEIGHT, BY_WIDTH, MIN_LETTERS, LEAST_LETTERS = 0.045, 0.04, 9, 6
LINE = 1.25  # height of a line, in letters
SMALLER = 0.7  # letters of a note that would not fit otherwise
# small letters are drawn so many times larger and reduced, because whole pixels are too coarse for
# the gaps between them
FINE, FINE_BELOW = 3, 24  # times; pixels
KEPT = 256  # texts whose lines are remembered: one is asked for several times
PLATE = (10, 14, 22, 176)  # RGBA
QUESTION, ANSWER = (190, 218, 246, 255), (255, 255, 255, 255)


@dataclass(frozen=True)
class Plate:
    """What is blended over a picture at (top, left)."""

    top: int
    left: int
    light: np.ndarray  # [height, width, 3] uint16: colours multiplied by alpha, 0 to 255 * 255
    through: np.ndarray  # [height, width, 1] uint16: 255 - alpha

    def blend(self, picture: np.ndarray) -> None:
        """picture: [rows, columns, 3] uint8, changed in place."""
        height, width = self.light.shape[:2]
        part = picture[self.top : self.top + height, self.left : self.left + width]
        part[:] = (part * self.through + self.light + 127) // 255


@dataclass(frozen=True)
class _Text:
    lines: list[tuple[str, bool]]  # and whether it is a question's
    font: Any  # of letters that are drawn `fine` times larger
    fine: int
    line: int  # pixels: height of a line, as shown


class PlateMaker:
    """Makes plates for pictures of one size."""

    def __init__(self, height: int, width: int, face: Typeface) -> None:
        """height, width: of the pictures, in pixels."""
        self._height, self._width = height, width
        self._face = face
        usual = round(min(BY_HEIGHT * height, BY_WIDTH * width))
        self._margin = max(2, usual // 2)
        self._padding = max(2, usual // 2)
        self._space = height // SHARE - self._margin - 2 * self._padding  # of lines, in pixels
        size = max(MIN_LETTERS, usual)
        while size > LEAST_LETTERS and self._space // _line(size) < MIN_LINES:
            size -= 1
        self._sizes = sorted({size, max(LEAST_LETTERS, round(SMALLER * size))}, reverse=True)
        self._columns = max(1, width - 2 * (self._margin + self._padding))
        self._wrapped = lru_cache(KEPT)(lambda text, size, most: wrapped(text, face.at(size), most))

    def fits(self, notes: Sequence[Note]) -> bool:
        """Whether the notes fit on a plate together, uncut and in letters of the usual size."""
        text = self._text(notes, self._sizes[0])
        return len(text.lines) <= self._most(text)

    def plate(self, notes: Sequence[Note]) -> Plate:
        """The plate of notes. Where they do not fit, letters are smaller; then lines are cut."""
        for size in self._sizes:
            text = self._text(notes, size)
            if len(text.lines) <= self._most(text):
                break
        else:
            text = self._cut(text)
        return self._drawn(text)

    def _most(self, text: _Text) -> int:
        return max(MIN_LINES, self._space // text.line)

    def _text(self, notes: Sequence[Note], size: int) -> _Text:
        fine = FINE if size < FINE_BELOW else 1
        font = self._face.at(fine * size)
        lines = [
            (line, is_question)
            for note in notes
            for words, is_question in ((note.question, True), (note.answer or "-", False))
            for line in self._wrapped(words, fine * size, fine * self._columns)
        ]
        return _Text(lines, font, fine, _line(size))

    def _cut(self, text: _Text) -> _Text:
        """The text of one note, whose answer is cut after its question is down to one line."""
        asked = [line for line, is_question in text.lines if is_question]
        said = [line for line, is_question in text.lines if not is_question]
        most, columns = self._most(text), text.fine * self._columns
        said = shortened(said, most - bool(asked), text.font, columns)
        asked = shortened(asked, most - len(said), text.font, columns)
        lines = [(line, True) for line in asked] + [(line, False) for line in said]
        return replace(text, lines=lines)

    def _drawn(self, text: _Text) -> Plate:
        fine, padding = text.fine, self._padding
        longest = max(text.font.getlength(line) for line, _ in text.lines)
        width = min(self._width, ceil(longest / fine) + 2 * padding)
        height = min(self._height, len(text.lines) * text.line + 2 * padding)
        image = Image.new("RGBA", (fine * width, fine * height), (0, 0, 0, 0))
        draw = ImageDraw.Draw(image)
        corner = (image.width - 1, image.height - 1)
        draw.rounded_rectangle((0, 0, *corner), fine * padding, fill=PLATE)
        for row, (line, is_question) in enumerate(text.lines):
            place = (fine * padding, fine * (padding + row * text.line))
            draw.text(place, line, font=text.font, fill=QUESTION if is_question else ANSWER)
        image = image.reduce(fine)
        pixels = np.asarray(image).astype(np.uint16)
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        top = max(0, self._height - self._margin - height)
        left = min(self._margin, self._width - width)
        return Plate(top, left, colours * alpha, 255 - alpha)


def _line(size: int) -> int:
    return round(LINE * size)
