"""One picture of a video and what was asked about it: a row for each moment, with the frame that
was on the screen, the questions, the answers, and whether they are right."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vicort.runtime.rendering.lettering import typeface, wrapped
from vicort.runtime.sources import open_source

FRAME, COLUMN, COLUMNS = 320, 300, 3  # pixels: widths of a frame and of a column of text; columns
GAP, LINE, LETTERS = 16, 21, 16  # pixels: around all, from line to line, of letters
TITLE = 22  # pixels: of its letters
PAPER, INK, FAINT = (247, 247, 244), (30, 32, 36), (112, 116, 124)
GREEN, RED = (20, 120, 50), (190, 36, 28)
COLOURS = {True: GREEN, False: RED, None: FAINT}
HIGH = 1.3  # height of a line, in letters
FINE = 2  # times larger drawn and then reduced, for the gaps between letters
MAX_SCALE = 4  # height of a frame, as a multiple of its width


@dataclass(frozen=True)
class SheetEntry:
    """A question, its answer, and a remark on that."""

    at: float  # seconds
    question: str
    answer: str
    right: bool | None  # None = no answer is right or wrong
    remark: str


def contact_sheet(video: str, title: str, asked: Sequence[SheetEntry]) -> bytes:
    """The picture as PNG. video: any source that is not live. asked: one question at least.

    Raises SourceError.
    """
    moments = [
        (at, list(group))
        for at, group in groupby(sorted(asked, key=lambda each: each.at), lambda each: each.at)
    ]
    frames = _frames(video, [at for at, _ in moments])
    letters = {each for item in asked for each in item.question + item.answer + item.remark}
    face, _ = typeface(None, letters | set(title))
    rows = [
        _row(at, group, frame, face.at(FINE * LETTERS))
        for (at, group), frame in zip(moments, frames, strict=True)
    ]
    head = TITLE + 2 * GAP + GAP // 2
    sheet = Image.new("RGB", (rows[0].width, head + sum(row.height for row in rows)), PAPER)
    sheet.paste(_line(title, INK, face.at(FINE * TITLE), rows[0].width - 2 * GAP), (GAP, GAP))
    top = head
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _row(at: float, group: Sequence[SheetEntry], frame: Image.Image, font: Any) -> Image.Image:
    """A frame, and beside it what was asked then, in columns that are as high as needed."""
    blocks = [list(_lines(each, font)) for each in group]
    most = max(1, -(-len(blocks) // COLUMNS))
    while most < len(blocks) and _height(blocks[: most + 1]) + LINE <= frame.height:
        most += 1
    columns = [blocks[start : start + most] for start in range(0, len(blocks), most)]
    high = max(frame.height, LINE + max(_height(column) for column in columns))
    width = 2 * GAP + FRAME + COLUMNS * (COLUMN + GAP)
    row = Image.new("RGB", (width, high + GAP), PAPER)
    row.paste(frame, (GAP, 0))
    for number, column in enumerate(columns):
        left, top = 2 * GAP + FRAME + number * (COLUMN + GAP), 0
        if number == 0:
            row.paste(_line(f"{at:.1f} s", FAINT, font, COLUMN), (left, top))
        top += LINE
        for block in column:
            for text, colour in block:
                row.paste(_line(text, colour, font, COLUMN), (left, top))
                top += LINE
            top += LINE // 3
    return row


def _lines(asked: SheetEntry, font: Any) -> Iterator[tuple[str, tuple[int, int, int]]]:
    said = f"{asked.answer or '-'} ({asked.remark})"
    for text, colour in ((asked.question, INK), (said, COLOURS[asked.right])):
        for line in wrapped(text, font, FINE * COLUMN):
            yield line, colour


def _height(blocks: Sequence[Sequence[object]]) -> int:
    return sum(len(block) * LINE + LINE // 3 for block in blocks)


def _line(text: str, colour: tuple[int, int, int], font: Any, width: int) -> Image.Image:
    """A line of text in letters of `font`, reduced by FINE."""
    large = Image.new("RGB", (FINE * width, FINE * round(HIGH * font.size / FINE)), PAPER)
    ImageDraw.Draw(large).text((0, 0), text, font=font, fill=colour)
    return large.reduce(FINE)


def _frames(video: str, times: Sequence[float]) -> list[Image.Image]:
    """What is on the screen at each of these rising times, FRAME pixels wide."""
    found: list[Image.Image] = []
    newest: np.ndarray | None = None
    with open_source(video) as source:
        for frame in source:
            while newest is not None and len(found) < len(times):
                if frame.time <= Fraction(str(times[len(found)])):
                    break
                found.append(_small(newest))
            newest = frame.image.copy()
    rest = len(times) - len(found)
    return found + [_small(newest)] * rest if newest is not None else found


def _small(picture: np.ndarray) -> Image.Image:
    height = round(picture.shape[0] * FRAME / picture.shape[1])
    size = (FRAME, min(max(1, height), MAX_SCALE * FRAME))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
