"""Polygons on pictures, against the question whether a point is inside, asked pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.alerts.polygon import PictureMasks, inside, parse_polygon, touched

PARTS = st.integers(0, 13).map(lambda part: part / 13)
POLYGONS = st.lists(st.tuples(PARTS, PARTS), min_size=3, max_size=7).map(tuple)
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def contains(polygon, x, y):
    """Whether a ray to the left crosses an odd number of edges; None for a point on an edge."""
    crossed = False
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y1 <= y) != (y2 <= y):
            at = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
            if abs(at - x) < 1e-9:
                return None
            crossed ^= at < x
    return crossed


@given(POLYGONS, SIZES)
def test_a_pixel_is_inside_with_its_centre(polygon, size):
    height, width = size
    scaled = [(x * width, y * height) for x, y in polygon]
    found = inside(polygon, height, width)
    for row in range(height):
        for column in range(width):
            expected = contains(scaled, column + 0.5, row + 0.5)
            assert expected in (None, found[row, column])


@given(POLYGONS, SIZES)
def test_a_mask_hides_the_neighbours_too(polygon, size):
    height, width = size
    own = inside(polygon, height, width)
    expected = [
        [
            own[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].any()
            for column in range(width)
        ]
        for row in range(height)
    ]
    assert (touched(polygon, height, width) == np.array(expected)).all()


def test_masks_follow_the_size_of_the_picture():
    left = ((0, 0), (0.5, 0), (0.5, 1), (0, 1))
    masks = PictureMasks((left,), {"left": left})
    for width in (8, 20, 8):
        image = np.full((4, width, 3), 9, np.uint8)
        public = masks.public(image)
        assert not public[:, : width // 2 + 1].any()
        assert (public[:, width // 2 + 1 :] == 9).all()
        zone = masks.within("left", image)
        assert (zone[:, : width // 2] == 9).all()
        assert not zone[:, width // 2 :].any()
        assert (image == 9).all()


def winding(polygon, x, y):
    """How often the polygon goes around a point, by the angles that its edges are seen at."""
    corners = np.array(polygon) - (x, y)
    angles = np.arctan2(corners[:, 1], corners[:, 0])
    turns = np.diff([*angles, angles[0]])
    return round(((turns + np.pi) % (2 * np.pi) - np.pi).sum() / (2 * np.pi))


@given(POLYGONS)
def test_what_a_polygon_goes_around_is_inside(polygon):
    """Unless its edges cross, so that it goes around some points twice."""
    try:
        taken = parse_polygon([list(point) for point in polygon])
    except ValueError:
        return
    size = 20
    found = inside(taken, size, size)
    for row, column in ((row, column) for row in range(size) for column in range(size)):
        x, y = (column + 0.5) / size, (row + 0.5) / size
        if contains(taken, x, y) is not None:
            assert abs(winding(polygon, x, y)) == found[row, column]


STAR = [[0.5, 0], [0.8, 1], [0, 0.4], [1, 0.4], [0.2, 1]]
SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            [[0, 0], [1, 1], [1, 0], [0, 1]],
            "the edge [0, 0] to [1, 1] and the edge [1, 0] to [0, 1] cross",
        ),
        (STAR, "cross or touch: give the points in their order"),
        (SQUARE * 2, "cross or touch"),
        ([[0, 0], [0.5, 0.5], [1, 1]], "enclose no area"),
        ([[0, 0], [0, 0], [1, 1]], "enclose no area"),
    ],
)
def test_edges_that_cross_are_refused_in_one_line(points, said):
    with pytest.raises(ValueError, match="points") as refused:
        parse_polygon(points)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_polygon_may_be_closed():
    assert set(parse_polygon([*SQUARE, SQUARE[0]])) == {(0, 0), (1, 0), (1, 1), (0, 1)}
    assert parse_polygon(SQUARE) == ((0, 0), (1, 0), (1, 1), (0, 1))
