"""Polygons on a picture: zones, outside of which a model sees nothing, and privacy masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vicort.runtime.safe_text import is_real, shown

MAX_POINTS = 64
FORM = "give 3 to 64 points [x, y], each from 0 to 1 of the frame's width and height"

# its corners as (x, y), from the left and from the top, in fractions of the frame
Polygon = tuple[tuple[float, float], ...]
_Point = tuple[Fraction, Fraction]


def parse_polygon(value: Any) -> Polygon:
    """A polygon from a list of [x, y]. Raises ValueError, also if edges cross or touch: parts of
    what they enclose would not be inside (see `inside`)."""
    points = value if isinstance(value, list | tuple) else []
    if not 3 <= len(points) <= MAX_POINTS:
        raise ValueError(f"{shown(value)} is no polygon: {FORM}")
    for point in points:
        is_point = isinstance(point, list | tuple) and len(point) == 2
        if not is_point or not all(is_real(each) for each in point):
            raise ValueError(f"{shown(point)} is no point: {FORM}")
        if not all(0 <= each <= 1 for each in point):
            raise ValueError(f"the point {shown(point)} is outside the frame: {FORM}")
    polygon = tuple((float(x), float(y)) for x, y in points)
    # a point that is there twice in a row makes no edge, as one that closes the polygon
    polygon = tuple(each for at, each in enumerate(polygon) if each != polygon[at - 1])
    _check_edges(polygon)
    return polygon


def _check_edges(polygon: Polygon) -> None:
    """Raises ValueError. Exact: coordinates are taken as fractions."""
    corners = [(Fraction(x), Fraction(y)) for x, y in polygon]
    edges = [(corners[at - 1], corners[at]) for at in range(len(corners))]
    if sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in edges) == 0 and len(corners) < 4:
        raise ValueError(f"the points {_listed(corners)} enclose no area: {FORM}")
    for first in range(len(edges)):
        for second in range(first + 2, len(edges)):
            neighbours = first == 0 and second == len(edges) - 1
            if not neighbours and _meet(*edges[first], *edges[second]):
                raise ValueError(
                    f"the edge {_listed(edges[first], ' to ')} and the edge "
                    f"{_listed(edges[second], ' to ')} cross or touch: give the points in their "
                    "order around the area, and one polygon for each area"
                )


def _meet(a: _Point, b: _Point, c: _Point, d: _Point) -> bool:
    """Whether the line from a to b and that from c to d have a point in common."""
    sides = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    if sides[0] * sides[1] < 0 and sides[2] * sides[3] < 0:
        return True
    ends = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(
        side == 0
        and min(start[0], end[0]) <= point[0] <= max(start[0], end[0])
        and min(start[1], end[1]) <= point[1] <= max(start[1], end[1])
        for side, (start, end, point) in zip(sides, ends, strict=True)
    )


def _side(start: _Point, end: _Point, point: _Point) -> Fraction:
    """Above 0 on one side of the line, below 0 on the other one, 0 on it (the cross product)."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _listed(points: Sequence[_Point], between: str = ", ") -> str:
    return between.join(f"[{float(x):g}, {float(y):g}]" for x, y in points)


def inside(polygon: Polygon, height: int, width: int) -> np.ndarray:
    """[height, width] bool: which pixels have their centre in the polygon, by the even-odd rule.

    Row by row: a centre is inside if an odd number of edges crosses its row left of it.
    """
    x = np.array([point[0] for point in polygon]) * width
    y = np.array([point[1] for point in polygon]) * height
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    centres = np.arange(width) + 0.5
    found = np.zeros((height, width), bool)
    for row in range(height):
        middle = row + 0.5
        crossed = (y <= middle) != (next_y <= middle)
        if crossed.any():
            along = (middle - y[crossed]) / (next_y[crossed] - y[crossed])
            at = np.sort(x[crossed] + along * (next_x[crossed] - x[crossed]))
            found[row] = np.searchsorted(at, centres) % 2 == 1
    return found


def touched(polygon: Polygon, height: int, width: int) -> np.ndarray:
    """[height, width] bool: the pixels of `inside` and their neighbours, so that a mask leaves no
    edge of what it hides."""
    found = inside(polygon, height, width)
    grown = found.copy()
    grown[1:] |= found[:-1]
    grown[:-1] |= found[1:]
    grown[:, 1:] |= grown[:, :-1].copy()
    grown[:, :-1] |= grown[:, 1:].copy()
    return grown


class PictureMasks:
    """What is blackened in the pictures of one stream. The pixels are found once for each size."""

    def __init__(self, privacy: Sequence[Polygon], zones: Mapping[str, Polygon]) -> None:
        self._privacy = privacy
        self._zones = zones
        # [height, width, 1] uint8: 1 where a pixel stays; None = the privacy masks
        self._stays: dict[str | None, np.ndarray] = {}

    def public(self, image: np.ndarray) -> np.ndarray:
        """A copy of a picture [height, width, 3] uint8 with the privacy masks black."""
        return image * self._mask(None, image) if self._privacy else np.array(image, order="C")

    def within(self, zone: str, image: np.ndarray) -> np.ndarray:
        """A copy of a picture that is black outside a zone."""
        return image * self._mask(zone, image)

    def _mask(self, zone: str | None, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        known = self._stays.get(zone)
        if known is None or known.shape[:2] != (height, width):
            known = self._make(zone, height, width)[..., np.newaxis].astype(np.uint8)
            self._stays[zone] = known
        return known

    def _make(self, zone: str | None, height: int, width: int) -> np.ndarray:
        if zone is not None:
            return inside(self._zones[zone], height, width)
        hidden = [touched(each, height, width) for each in self._privacy]
        return ~np.logical_or.reduce(hidden)
