"""The stream world: deterministic, inside the frame, and each question has the answer that the
picture gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.export.tiny.reels import labels
from vicort.export.tiny.video import letterbox, read_units, write_video
from vicort.export.tiny.world import (
    COLORS,
    SHAPES,
    UNSEEN,
    Painter,
    Style,
    depth,
    make_stream,
    random_style,
    shifted,
)
from vicort.export.tiny.world_questions import all_questions

CLEAN = Style(level=60, contrast=0, strength=0, shading=0)


@given(
    seed=st.integers(0, 10**6),
    objects=st.integers(0, 7),
    aspect=st.sampled_from([0.5625, 0.75, 1.0, 4 / 3, 16 / 9, 2.0]),
)
@settings(max_examples=examples(60))
def test_things_come_one_after_another_and_stay_inside(
    seed: int, objects: int, aspect: float
) -> None:
    stream = make_stream(seed, objects, aspect, lead=1.0, tail=2.0)
    assert stream == make_stream(seed, objects, aspect, lead=1.0, tail=2.0)
    assert len({thing.shape for thing in stream.things}) == len(stream.things) == objects
    assert len({thing.color for thing in stream.things}) == min(objects, len(COLORS))
    clock = 1.0
    for thing in stream.things:
        assert thing.start >= clock - 1e-9
        assert thing.end - thing.start >= 1.0
        assert 0.30 * min(1, aspect) <= thing.radius <= 0.42 * min(1, aspect)
        clock = thing.end
        for time in (thing.start, thing.end):
            x, y = thing.center(time)
            assert abs(x) + thing.radius <= aspect / 2 + 1e-6
            assert abs(y) + thing.radius <= 0.5 + 1e-6
    assert stream.duration == pytest.approx(clock + 2.0)


def test_more_things_than_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="objects=8"):
        make_stream(0, 8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_where_and_as_large_as_it_says(shape: str) -> None:
    side = np.linspace(-1.3, 1.3, 261)
    inside = depth(shape, side[None, :], side[:, None]) > 0
    radius = np.hypot(side[None, :], side[:, None])
    assert not inside[radius > 1.01].any()
    assert inside[radius > 0.95].any()
    assert 0.15 < inside.sum() / (radius < 1).sum() <= 1.0


def test_shapes_differ() -> None:
    side = np.linspace(-1, 1, 101)
    masks = [depth(shape, side[None, :], side[:, None]) > 0 for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() / (one | other).sum() > 0.2


@pytest.mark.parametrize("seed", range(4))
def test_a_thing_shows_its_color_and_nothing_else_shows_it(seed: int) -> None:
    stream = make_stream(seed, 7, aspect=4 / 3, lead=1.0, gap=(1.0, 2.0))
    painter = Painter(stream, 160, 120, CLEAN)
    empty = painter.frame(0.5).astype(int)
    assert np.ptp(empty, axis=(0, 1)).max() == 0
    for thing in stream.things:
        changed = (
            np.abs(painter.frame((thing.start + thing.end) / 2).astype(int) - empty).sum(-1) > 60
        )
        shown = painter.frame((thing.start + thing.end) / 2)[changed].mean(0)
        nearest = min(COLORS, key=lambda name: np.abs(shown - np.array(COLORS[name])).sum())
        assert nearest == thing.color
        rows, columns = np.nonzero(changed)
        assert rows.max() - rows.min() <= 2 * thing.radius * 120 + 2
        assert columns.max() - columns.min() <= 2 * thing.radius * 120 + 2


def test_frames_follow_from_the_seed_alone_in_any_order() -> None:
    stream = make_stream(3, 2)
    one, other = Painter(stream, 64, 64), Painter(stream, 64, 64)
    later, first = one.frame(1.5), one.frame(0.0)
    np.testing.assert_array_equal(other.frame(0.0), first)
    np.testing.assert_array_equal(other.frame(1.5), later)
    assert (first != Painter(make_stream(4, 2), 64, 64).frame(0.0)).mean() > 0.5


@pytest.mark.parametrize("style", [*UNSEEN.values(), random_style(np.random.default_rng(0))])
def test_background_changes_all_the_time_and_every_style_draws(style: Style) -> None:
    painter = Painter(make_stream(5, 0, lead=4.0), 96, 64, style)
    assert np.abs(painter.frame(0.0).astype(int) - painter.frame(3.0)).mean() > 0.5


def test_answers_are_what_came() -> None:
    stream = make_stream(7, 6)
    asked = {each.question: each.answer for each in all_questions(stream.things, stream.things[-1])}
    for thing in stream.things:
        assert asked[f"what color was the {thing.shape}?"] == thing.color
        assert asked[f"what shape was {thing.color}?"] == thing.shape
    missing = (set(SHAPES) - {thing.shape for thing in stream.things}).pop()
    assert asked[f"what color was the {missing}?"] == "none"
    assert asked[f"was there a {missing}?"] == "no"
    assert asked["which came first?"] == f"{stream.things[0].color} {stream.things[0].shape}"
    assert asked["what is there now?"] == f"{stream.things[-1].color} {stream.things[-1].shape}"
    assert asked["how many shapes were there?"] == "six"


def test_a_color_that_came_twice_is_not_asked_for() -> None:
    things = make_stream(8, 7).things
    twice = next(color for color in COLORS if sum(thing.color == color for thing in things) == 2)
    assert f"what shape was {twice}?" not in {each.question for each in all_questions(things, None)}


def test_nothing_comes_to_nothing() -> None:
    asked = {each.question: each.answer for each in all_questions((), None)}
    assert asked["what is there now?"] == asked["which came first?"] == "nothing"
    assert asked["how many shapes were there?"] == "zero"


@pytest.mark.parametrize(
    ("codec", "ending"), [("libx264", "mp4"), ("mpeg4", "mp4"), ("mjpeg", "mkv")]
)
def test_a_file_shows_what_the_stream_says_when_it_says(tmp_path, codec: str, ending: str) -> None:
    stream = shifted(make_stream(11, 2, aspect=16 / 9, tail=1.0, gap=(1.0, 1.5)), 1.0)
    path = tmp_path / f"stream.{ending}"
    write_video(path, stream, (192, 108), fps=10, codec=codec, style=CLEAN)
    units, times = read_units(path)
    assert units.shape[1:] == (2, 112, 112, 3)
    assert len(times) == 2 * len(units)
    assert np.diff([float(time) for time in times[:-1]]) == pytest.approx(0.5)
    shown = labels(stream, [float(time) for time in times]).ravel()
    contrast = units.reshape(-1, 112, 112, 3)[:, 28:84].astype(int).std((1, 2)).max(-1)
    np.testing.assert_array_equal(contrast > 15, shown >= 0)


@given(width=st.integers(1, 400), height=st.integers(1, 400))
@settings(max_examples=examples(40))
def test_letterbox_keeps_the_aspect_and_centres(width: int, height: int) -> None:
    boxed = letterbox(np.full((height, width, 3), 200, np.uint8))
    rows, columns = np.nonzero(boxed[..., 0])
    for edge, other, length, other_length in (
        (rows, columns, height, width),
        (columns, rows, width, height),
    ):
        span = edge.max() - edge.min() + 1
        assert span == (
            112 if length >= other_length else max(1, round(112 * length / other_length))
        )
        assert abs(edge.min() - (111 - edge.max())) <= 1
        assert other.min() >= 0
