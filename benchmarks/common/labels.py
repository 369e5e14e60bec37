"""Labels of points, put where they collide with nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

MOVABLE = "movable"  # the gid of labels that may be moved
AROUND = [math.radians(angle) for angle in (0, 90, 180, 270, 45, 135, 225, 315)]
DISTANCES = (9, 14, 22, 32, 44)  # points
STEP = 3.0  # pixels between two samples of a line
MARGIN = 2.0  # pixels around a label
OUTSIDE, ON_A_LABEL = 1e6, 1e4  # costs; a sample of a line under a label costs 1


def label(axis: Any, text: str, place: tuple[float, float], **options: Any) -> None:
    """A label of a point in the axes' data, which `place_labels` moves around it."""
    axis.annotate(
        text,
        place,
        xytext=(DISTANCES[0], 0),
        textcoords="offset points",
        ha="center",
        va="center",
        gid=MOVABLE,
        **options,
    )


def place_labels(figure: Any) -> None:
    """Move each label to the nearest of some places where it lies on no other text and on the
    fewest lines. Call it once the layout of the figure is settled."""
    from matplotlib.text import Annotation

    for axis in figure.axes:
        labels = [each for each in axis.texts if isinstance(each, Annotation)]
        movable = [each for each in labels if each.get_gid() == MOVABLE]
        if not movable:
            continue
        taken = [each.get_window_extent() for each in labels if each not in movable]
        points = line_points(axis)
        for each in movable:
            size = each.get_window_extent()
            half = np.array([size.width, size.height]) / 2
            point = axis.transData.transform(each.xy)
            scale = figure.dpi / 72
            costs = {
                offset: _cost(axis, _box(point, offset, half, scale), taken, points)
                + math.hypot(*offset) / 1000  # among equals the nearest
                for offset in _offsets(half / scale)
            }
            best = min(costs, key=lambda offset: costs[offset])
            each.set_position(best)
            taken.append(_box(point, best, half, scale))


def line_points(axis: Any) -> np.ndarray:
    """Points [n, 2] in pixels on the lines, error bars and markers of a panel; not on its grid."""
    paths: list[Any] = []
    markers: list[Any] = []
    for line in axis.lines:
        joined = line.get_linestyle() != "None"  # markers alone: the caps of error bars
        (paths if joined else markers).append(line.get_transform().transform_path(line.get_path()))
    for collection in axis.collections:
        if hasattr(collection, "get_segments"):  # error bars
            place = collection.get_transform()
            paths += [place.transform_path(path) for path in collection.get_paths()]
    found = [_samples(_finite(path)) for path in paths] + [_finite(path) for path in markers]
    return np.concatenate(found) if found else np.empty((0, 2))


def _finite(path: Any) -> np.ndarray:
    """Vertices [n, 2] of a path without the gaps."""
    return path.vertices[np.isfinite(path.vertices).all(axis=1)]


def _samples(vertices: np.ndarray) -> np.ndarray:
    """Points along a line through vertices [n, 2]."""
    pieces = [vertices]
    for start, end in itertools.pairwise(vertices):
        count = int(np.hypot(*(end - start)) // STEP)
        pieces.append(start + (end - start) * np.linspace(0, 1, count + 1)[:, None])
    return np.concatenate(pieces)


def _offsets(half: np.ndarray) -> list[tuple[float, float]]:
    """Places of a label's middle around its point, in points, the nearest first. half: [2] of its
    width and height."""
    return [
        (
            math.cos(angle) * distance + np.sign(round(math.cos(angle), 6)) * half[0],
            math.sin(angle) * distance + np.sign(round(math.sin(angle), 6)) * half[1],
        )
        for distance in DISTANCES
        for angle in AROUND
    ]


def _box(point: np.ndarray, offset: tuple[float, float], half: np.ndarray, scale: float) -> Any:
    """Of a label, in pixels. scale: pixels in a point."""
    from matplotlib.transforms import Bbox

    middle = point + np.array(offset) * scale
    return Bbox([middle - half - MARGIN, middle + half + MARGIN])


def _cost(axis: Any, box: Any, taken: list[Any], points: np.ndarray) -> float:
    room = axis.get_window_extent()
    outside = box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
    cost = OUTSIDE * outside + ON_A_LABEL * sum(box.overlaps(other) for other in taken)
    under = (points[:, 0] > box.x0) & (points[:, 0] < box.x1)
    under &= (points[:, 1] > box.y0) & (points[:, 1] < box.y1)
    return cost + int(under.sum())
