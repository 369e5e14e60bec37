"""The built-in test pattern, which needs no file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError
from vicort.runtime.sources.limits import MAX_PIXELS
from vicort.runtime.sources.source import Source, Wants

SCHEME = "testsrc:"
ALLOWED = (
    f"{SCHEME}[seconds=NUMBER][,size=WIDTHxHEIGHT][,fps=NUMBER], as "
    f"`{SCHEME}seconds=10,size=320x240,fps=25`"
)
THINGS = (  # one per second; then nothing until the cycle restarts
    ("circle", (215, 40, 40)),  # red
    ("square", (40, 175, 60)),  # green
    ("triangle", (45, 75, 225)),  # blue
    ("cross", (235, 210, 45)),  # yellow
    ("ring", (238, 238, 238)),  # white
    ("diamond", (160, 55, 200)),  # purple
)
CYCLE = 10  # seconds
RADIUS = 0.36  # of a shape, as a share of the frame's shorter side


class PatternSource(Source):
    """A red circle for one second, then a green square, a blue triangle, a yellow cross, a white
    ring, a purple diamond, and four seconds without a shape; then it repeats. Each shape drifts
    from left to right over a grey gradient. Every run is identical.
    """

    def __init__(self, spec: str) -> None:
        """spec: `testsrc:` with any of seconds, size and fps. Raises SourceError otherwise."""
        values = _parsed(spec)
        self._fps = values["fps"]
        self._size = values["size"]
        count = int(values["seconds"] * self._fps)
        super().__init__(spec, frames_total=count, duration=values["seconds"])
        self._count = count

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        for index in range(self._count):
            time = index / self._fps
            if wants is None or wants(time):
                yield Frame(paint(time, *self._size), time, index)


def paint(time: Fraction, width: int, height: int) -> np.ndarray:
    """[height, width, 3] uint8: the pattern at a time in seconds."""
    image = np.repeat(
        np.linspace(60, 110, height).astype(np.uint8)[:, None, None], width, axis=1
    ).repeat(3, axis=2)
    second = int(time) % CYCLE
    if second < len(THINGS):
        shape, color = THINGS[second]
        radius = RADIUS * min(width, height)
        drift = (float(time % 1) - 0.5) * max(0.0, width - 2 * radius) * 0.25
        rows, columns = np.mgrid[:height, :width]
        y, x = (rows + 0.5 - height / 2) / radius, (columns + 0.5 - width / 2 - drift) / radius
        image[_inside(shape, np.abs(x), y)] = color
    return image


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mask of a shape of radius 1. x: distance from its axis. y: distance below its centre."""
    distance = np.hypot(x, y)
    masks = {
        "circle": distance <= 1,
        "ring": (distance <= 1) & (distance >= 0.55),
        "square": (x <= 0.75) & (np.abs(y) <= 0.75),
        "diamond": x + np.abs(y) <= 1,
        "triangle": (y <= 0.6) & (x * 1.73 <= y + 1),
        "cross": ((x <= 0.3) & (np.abs(y) <= 0.95)) | ((np.abs(y) <= 0.3) & (x <= 0.95)),
    }
    return masks[shape]


def _parsed(spec: str) -> dict[str, Any]:
    values: dict[str, Any] = {"seconds": Fraction(10), "size": (320, 240), "fps": Fraction(25)}
    for part in filter(None, spec.removeprefix(SCHEME).split(",")):
        key, _, text = part.partition("=")
        if key == "size" and (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)):
            values["size"] = (int(match[1]), int(match[2]))
        elif (
            key in ("seconds", "fps")
            and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text)
            and Fraction(text) > 0
        ):
            values[key] = Fraction(text)
        else:
            raise SourceError(f"{part!r} in {spec!r} is not allowed: give {ALLOWED}")
    if values["size"][0] * values["size"][1] > MAX_PIXELS:
        raise SourceError(f"{spec!r} has more than {MAX_PIXELS} pixels: give a smaller size")
    return values
