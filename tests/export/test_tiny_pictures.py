"""How the stream world looks: outlines, backgrounds, colours and the camera, in families of which
some are kept from training; and its files."""

from __future__ import annotations

import colorsys
import sys
from dataclasses import fields, replace
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.export.tiny import backgrounds
from vicort.export.tiny.backgrounds import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_PHOTOS,
    PHOTOS,
)
from vicort.export.tiny.looks import (
    FINISHES,
    HELD_OUT_FINISHES,
    PALETTES,
    REGIONS,
    Camera,
    Look,
    color_of,
    held_out_look,
    look_without_photo,
    random_look,
)
from vicort.export.tiny.outlines import FONTS, Font, cover, outline, random_font
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.reels import labels
from vicort.export.tiny.video import letterbox, read_units, write_video
from vicort.export.tiny.world import COLORS, SHAPES, StreamPlan, ThingStream, make_stream, shifted
from vicort.runtime.errors import ConfigError

NO_NOISE = Camera(strength=0.0)
CLEAN = Look(background="plain", level=60, contrast=0, shading=0, camera=NO_NOISE)
WITH_PHOTOS = {"photo", "held-out photo"}
needs_photographs = pytest.mark.skipif(
    find_spec("skimage") is None,
    reason="scikit-image is not installed: pip install '.[train]'",
)
FONT_STRATEGY = st.one_of(
    st.integers(0, 10**6).map(lambda seed: random_font(np.random.default_rng(seed))),
    st.sampled_from(list(FONTS.values())),
)


# ---- outlines


def area(corners: np.ndarray) -> float:
    """Of a polygon [corners, 2]."""
    x, y = corners.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


@given(
    shape=st.sampled_from(SHAPES),
    font=FONT_STRATEGY,
    radius=st.floats(10, 90),
    angle=st.floats(-0.3, 0.3),
    offset=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    finer=st.sampled_from([1, 4]),
)
@settings(max_examples=examples(120))
def test_a_shape_covers_the_area_of_its_outline_around_its_centre(
    shape: str, font: Font, radius: float, angle: float, offset: tuple[float, float], finer: int
) -> None:
    found = cover(shape, font, radius, angle, offset, finer)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() == 1
    polygon = outline(shape, font)
    expected = area(polygon) * radius**2 * (1 - font.hole**2 if shape == "ring" else 1)
    if finer > 1 and radius > 40:
        assert found.sum() == pytest.approx(expected, rel=0.03)
    # pixels that the border cuts are covered
    border = float(np.linalg.norm(polygon - np.roll(polygon, 1, 0), axis=1).sum()) * radius
    assert found.sum() == pytest.approx(expected, abs=1.05 * border / finer)
    middle = len(found) / 2 + np.array(offset)
    rows, columns = np.nonzero(found > 0.5)
    reach = np.hypot(columns + 0.5 - middle[0], rows + 0.5 - middle[1]).max()
    assert reach <= np.hypot(*polygon.T).max() * radius + 2


@pytest.mark.parametrize("font", [Font(), *FONTS.values()])
def test_shapes_differ(font: Font) -> None:
    masks = [cover(shape, font, 50, 0.0, (0, 0), 1) > 0 for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() / (one | other).sum() > 0.15


def test_a_shape_that_the_world_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="shape='heart': the world has circle, square"):
        outline("heart", Font())


# ---- backgrounds

WITHOUT_PHOTOS = sorted((BACKGROUNDS.keys() | HELD_OUT_BACKGROUNDS.keys()) - WITH_PHOTOS)
STILL, ALWAYS_MOVING = {"plain", "blocks"}, {"blobs", "checks"}


@pytest.mark.parametrize(
    "name",
    [
        *WITHOUT_PHOTOS,
        *(pytest.param(each, marks=needs_photographs) for each in sorted(WITH_PHOTOS)),
    ],
)
def test_a_background_is_a_picture_for_any_time_and_some_move(name: str) -> None:
    make = (BACKGROUNDS | HELD_OUT_BACKGROUNDS)[name]
    moved, seen = [], []
    for seed in range(16):
        width, height = ((40, 30), (30, 40))[seed % 2]
        picture = make(np.random.default_rng(seed), width, height)
        first, later = picture(0.0), picture(3.7)
        for each in (first, later, picture(5000.0)):
            assert each.shape == (height, width, 3)
            assert each.dtype in (np.float32, np.float64)
            assert np.abs(each).mean() < 1.5
        first_again = picture(0.0)
        np.testing.assert_array_equal(first_again, first)
        assert first_again is not first
        moved.append(bool((first != later).any()))
        seen.append(first if first.shape == (30, 40, 3) else first.transpose(1, 0, 2))
    assert len(np.unique(np.stack(seen).reshape(16, -1), axis=0)) == 16
    if name in STILL:
        assert not any(moved)
    elif name in ALWAYS_MOVING:
        assert all(moved)
    else:
        assert {*moved} == {True, False}


def test_a_photograph_without_scikit_image_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.delitem(sys.modules, "skimage.data", raising=False)
    backgrounds._photograph.cache_clear()
    with pytest.raises(ConfigError) as error:
        backgrounds.photo(np.random.default_rng(0), 64, 48)
    line = str(error.value)
    assert "scikit-image is not installed: run `pip install " in line
    assert "\n" not in line


# ---- families


def test_held_out_families_have_names_of_their_own() -> None:
    assert not BACKGROUNDS.keys() & HELD_OUT_BACKGROUNDS.keys()
    assert not {*PHOTOS} & {*HELD_OUT_PHOTOS}
    assert not {*FINISHES} & {*HELD_OUT_FINISHES}
    assert "regions" not in PALETTES
    for palette in PALETTES.values():
        assert palette.keys() == {*COLORS}


def test_drawn_looks_never_have_what_the_other_families_have() -> None:
    rng = np.random.default_rng(0)
    training = [random_look(rng) for _ in range(400)]
    held_out = [held_out_look(rng) for _ in range(400)]
    # every name is drawn, so that the names below are all there are
    assert {look.background for look in training} == BACKGROUNDS.keys()
    assert {look.finish for look in training} == {*FINISHES}
    assert {look.palette for look in training} == {"regions"}
    assert not {look.font for look in training} & {*FONTS.values()}
    assert {look.background for look in held_out} == HELD_OUT_BACKGROUNDS.keys()
    assert {look.finish for look in held_out} == {*HELD_OUT_FINISHES}
    assert {look.palette for look in held_out} == PALETTES.keys()
    assert {look.font for look in held_out} == {*FONTS.values()}


def test_the_default_look_is_of_the_training_families() -> None:
    look = Look()
    assert look.background in BACKGROUNDS.keys() - WITH_PHOTOS
    assert look.finish in FINISHES
    assert look.palette == "regions"


def test_a_look_without_a_photo_is_a_training_look_otherwise() -> None:
    for seed in range(60):
        look = look_without_photo(np.random.default_rng(seed))
        drawn = random_look(np.random.default_rng(seed))
        assert look.background not in WITH_PHOTOS
        if drawn.background != "photo":
            assert look == drawn
        for field in fields(look):
            if field.name != "background":
                assert getattr(look, field.name) == getattr(drawn, field.name)


# ---- colours


def color_named(rgb: np.ndarray) -> str:
    """The name whose region of hues is nearest, for a pixel of 0 to 255."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(np.asarray(rgb) / 255))

    def distance(name: str) -> float:
        low, high = REGIONS[name][0]
        off = (360 * hue - (low + high) / 2 + 180) % 360 - 180
        return max(0.0, abs(off) - (high - low) / 2)

    colorful = [name for name in COLORS if name != "white"]
    return "white" if saturation < 0.2 else min(colorful, key=distance)


@pytest.mark.parametrize("palette", ["regions", *PALETTES])
@pytest.mark.parametrize("name", COLORS)
def test_a_colour_goes_by_its_name(name: str, palette: str) -> None:
    for seed in range(30):
        rgb = color_of(name, palette, np.random.default_rng(seed))
        assert color_named(np.clip(rgb, 0, 255)) == name


def frame_with(
    stream: ThingStream, look: Look, time: float, height: int = 120
) -> tuple[np.ndarray, Painter]:
    painter = Painter(stream, round(height * stream.aspect), height, look)
    return painter.frame(time), painter


def drawn_looks() -> st.SearchStrategy[Look]:
    """Of both families, without noise and without photographs."""

    def look(seed: int, held_out: bool) -> Look:
        rng = np.random.default_rng(seed)
        drawn = held_out_look(rng) if held_out else look_without_photo(rng)
        stripes = "stripes" if drawn.background in WITH_PHOTOS else drawn.background
        return replace(drawn, background=stripes, camera=NO_NOISE)

    return st.builds(look, st.integers(0, 10**6), st.booleans())


@given(look=drawn_looks(), seed=st.integers(0, 10**6), aspect=st.sampled_from([0.5625, 1, 16 / 9]))
@settings(max_examples=examples(60))
def test_a_thing_shows_its_colour_at_its_centre(look: Look, seed: int, aspect: float) -> None:
    plan = StreamPlan(growing=0.5, covered=0.3, beside=0.3)
    stream = make_stream(seed, 3, aspect, plan=plan)
    for thing in stream.things:
        time = (thing.start + thing.end) / 2
        frame, _ = frame_with(stream, look, time)
        x, y = np.array(thing.center(time)) * 120 + (120 * aspect / 2, 60)
        if thing.shape == "ring":  # its right side, which is never hidden
            x += thing.radius_at(time) * 120 * (1 + look.font.hole) / 2 * np.cos(thing.angle)
            y -= thing.radius_at(time) * 120 * (1 + look.font.hole) / 2 * np.sin(thing.angle)
        row, column = min(int(y), frame.shape[0] - 1), min(int(x), frame.shape[1] - 1)
        assert color_named(frame[row, column]) == thing.color


# ---- the painter


@pytest.mark.parametrize("seed", range(4))
def test_a_thing_is_where_it_should_be_and_nothing_else_is(seed: int) -> None:
    stream = make_stream(seed, 7, aspect=4 / 3, lead=1.0, plan=StreamPlan(gap=(1.0, 2.0)))
    painter = Painter(stream, 160, 120, CLEAN)
    empty = painter.frame(0.5).astype(int)
    assert np.ptp(empty, axis=(0, 1)).max() == 0
    for thing in stream.things:
        time = (thing.start + thing.end) / 2
        changed = np.abs(painter.frame(time).astype(int) - empty).sum(-1) > 60
        rows, columns = np.nonzero(changed)
        x, y = np.array(thing.center(time)) * 120 + (80, 60)
        radius = thing.radius_at(time) * 120
        assert rows.min() >= y - radius - 2
        assert rows.max() <= y + radius + 2
        assert columns.min() >= x - radius - 2
        assert columns.max() <= x + radius + 2
        assert rows.max() - rows.min() >= radius


def test_a_hidden_part_shows_the_background() -> None:
    (thing,) = make_stream(4, 1, plan=StreamPlan(covered=1.0)).things
    thing = replace(thing, shape="square", angle=0.0, x=0.0, y=0.0, travel=0.0, hidden=0.3)
    frames = [
        frame_with(ThingStream((each,), 5.0, 1.0, 4), CLEAN, thing.start)[0].astype(int)
        for each in (thing, replace(thing, hidden=0.0))
    ]
    rows, columns = np.nonzero((frames[0] != frames[1]).any(-1))
    assert columns.max() < 60
    assert len(rows)
    np.testing.assert_array_equal(
        frames[0][rows, columns], np.broadcast_to(frames[0][0, 0], (len(rows), 3))
    )


@pytest.mark.parametrize("held_out", [False, True])
def test_frames_follow_from_the_seed_and_the_time_in_any_order(held_out: bool) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        look = held_out_look(rng) if held_out else look_without_photo(rng)
        if look.background in WITH_PHOTOS:
            look = replace(look, background="checks")
        stream = make_stream(seed, 2, plan=StreamPlan(beside=0.5))
        one, other = Painter(stream, 64, 64, look), Painter(stream, 64, 64, look)
        later, first = one.frame(1.5), one.frame(0.0)
        np.testing.assert_array_equal(other.frame(0.0), first)
        np.testing.assert_array_equal(other.frame(1.5), later)
        assert first.dtype == np.uint8
        different = Painter(make_stream(seed + 100, 2), 64, 64, look)
        assert (first != different.frame(0.0)).any(-1).mean() > 0.5


@needs_photographs
@pytest.mark.parametrize("name", sorted(WITH_PHOTOS))
def test_frames_in_front_of_photographs_follow_from_the_seed_too(name: str) -> None:
    look = replace(CLEAN, background=name, contrast=40)
    stream = make_stream(2, 1, lead=1.0)
    one, other = Painter(stream, 64, 48, look), Painter(stream, 64, 48, look)
    np.testing.assert_array_equal(one.frame(0.5), other.frame(0.5))
    assert one.frame(0.5).std() > 5


EMPTY = make_stream(5, 0, lead=8.0)


def test_without_noise_a_still_background_stays_as_it_is() -> None:
    painter = Painter(EMPTY, 96, 64, replace(CLEAN, background="blocks", contrast=40))
    np.testing.assert_array_equal(painter.frame(0.0), painter.frame(3.0))


def test_noise_is_as_strong_as_it_says_and_new_in_each_frame() -> None:
    for noise in ("gauss", "coarse"):
        look = replace(CLEAN, level=120, camera=Camera(noise=noise, strength=12.0))
        painter = Painter(EMPTY, 160, 160, look)
        one, other = painter.frame(0.0).astype(float), painter.frame(0.04).astype(float)
        assert one.std() == pytest.approx(12.0, rel=0.1)
        assert (one - other).std() == pytest.approx(12.0 * 2**0.5, rel=0.1)
        blocks = one.reshape(40, 4, 40, 4, 3).std((1, 3)).max()
        assert (blocks == 0) == (noise == "coarse")
    salt = Painter(EMPTY, 200, 200, replace(CLEAN, camera=Camera(noise="salt", strength=20.0)))
    frame = salt.frame(0.0)
    assert np.isin(frame, (0, 255)).all(-1).mean() == pytest.approx(0.02, rel=0.3)
    assert {*np.unique(frame)} == {0, 60, 255}


def test_a_shaking_camera_shifts_the_whole_frame() -> None:
    look = replace(CLEAN, background="blocks", contrast=60)
    still = Painter(EMPTY, 96, 64, look).frame(0.0)
    shaking = Painter(EMPTY, 96, 64, replace(look, camera=replace(NO_NOISE, shake=0.03)))
    shifts = set()
    for index in range(8):
        frame = shaking.frame(index / 4)
        found = [
            (dx, dy)
            for dx in range(-9, 10)
            for dy in range(-9, 10)
            if np.array_equal(np.roll(still, (dx, dy), (1, 0)), frame)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 3


def test_exposure_changes_when_it_should() -> None:
    camera = replace(NO_NOISE, gain=0.5, exposures=((2.0, 1.2), (4.0, 0.8)))
    painter = Painter(EMPTY, 32, 32, replace(CLEAN, level=100, camera=camera))
    levels = {time: float(painter.frame(time).mean()) for time in (0.0, 1.9, 2.0, 3.9, 4.0, 7.0)}
    assert levels == {0.0: 50, 1.9: 50, 2.0: 60, 3.9: 60, 4.0: 40, 7.0: 40}


@pytest.mark.parametrize("finish", [*FINISHES, *HELD_OUT_FINISHES])
def test_every_finish_draws_the_thing_in_its_own_way(finish: str) -> None:
    stream = make_stream(9, 1)
    look = replace(CLEAN, level=130, shading=0.1)
    time = stream.things[0].start
    frame, _ = frame_with(stream, replace(look, finish=finish), time)
    smooth, _ = frame_with(stream, look, time)
    assert (frame == smooth).all() == (finish == "smooth")


# ---- files


@pytest.mark.parametrize(
    ("codec", "ending"), [("libx264", "mp4"), ("mpeg4", "mp4"), ("mjpeg", "mkv")]
)
def test_a_file_shows_what_the_stream_says_when_it_says(tmp_path, codec: str, ending: str) -> None:
    plan = StreamPlan(gap=(1.0, 1.5))
    stream = shifted(make_stream(11, 2, aspect=16 / 9, tail=1.0, plan=plan), 1.0)
    path = tmp_path / f"stream.{ending}"
    write_video(path, stream, (192, 108), fps=10, codec=codec, look=CLEAN)
    units, times = read_units(path)
    assert units.shape[1:] == (2, 112, 112, 3)
    assert len(times) == 2 * len(units)
    assert np.diff([float(time) for time in times[:-1]]) == pytest.approx(0.5)
    shown = labels(stream, times)[..., 0].ravel()
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


def test_letterbox_puts_the_picture_where_it_should_be_between_the_bars() -> None:
    wide = np.full((50, 100, 3), 200, np.uint8)
    for down, first in ((0.0, 0), (0.5, 28), (1.0, 56)):
        rows = np.flatnonzero(letterbox(wide, (0.2, down))[:, 0, 0])
        assert (rows.min(), len(rows)) == (first, 56)
