"""Motion as the decoder tells it, on files of several codecs, and how that of frames which are left
out adds up."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streams import frames
from support.videos import QUIET, needs_encoder, turn

from vicort.runtime.core import Frame, Motion
from vicort.runtime.sources import open_source
from vicort.runtime.sources.motion import longest_vectors

WIDTH, HEIGHT, GOP = 160, 96, 12
STEP = 3  # pixels that the thing goes a picture
VECTORS = np.dtype(
    {
        "names": ["dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"],
        "formats": ["<i2", "<i2", "<i4", "<i4", "<u2"],
    }
)


def write_moving(
    path: Path,
    codec: str,
    moving=lambda picture: True,
    count: int = 30,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    **options,
):
    """A textured square that goes to the right across a still, textured background, wherever
    `moving` says so."""
    needs_encoder(codec)
    random = np.random.default_rng(0)
    width, height = size
    background = (
        random.integers(0, 255, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    square, x = random.integers(0, 255, (32, 32, 3), np.uint8), 4
    with av.open(str(path), "w") as output:
        track = output.add_stream(codec, rate=25, options=QUIET.get(codec, {}) | options)
        track.width, track.height, track.gop_size = width, height, GOP
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for picture in range(count):
            image = background.copy()
            image[32:64, x : x + 32] = square
            x += STEP * bool(moving(picture))
            output.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(track.encode())
    return path


def motions(path: Path, **options) -> list[Frame]:
    return list(open_source(str(path), motion=True, **options))


X264 = {"bf": "0", "refs": "1", "sc_threshold": "0", "tune": "zerolatency"}


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("libx264", "mp4", X264), ("mpeg4", "mp4", {}), ("mpeg2video", "ts", {})],
)
def test_vectors_lie_where_something_moves(codec, suffix, options, tmp_path):
    told = [
        frame.motion for frame in motions(write_moving(tmp_path / f"a.{suffix}", codec, **options))
    ]
    assert [i for i, motion in enumerate(told) if motion.refreshed] == [0, 12, 24]
    for motion in told:
        assert motion.cells.shape == (HEIGHT // 16, WIDTH // 16)
        assert not motion.refreshed or not motion.cells.any()
    moving = np.median([motion.cells[2:4].max() for motion in told if not motion.refreshed])
    assert moving == pytest.approx(STEP, abs=1) or np.isinf(moving)
    # above and below its path
    assert np.mean([motion.cells[[0, 5]] > 0.5 for motion in told]) < 0.05


def test_pictures_that_nobody_takes_are_not_lost(tmp_path):
    """It moves in pictures 3 to 5 only, and only every fourth picture is taken."""
    path = write_moving(
        tmp_path / "a.mp4", "libx264", lambda picture: picture in (2, 3), count=10, **X264
    )
    with open_source(str(path), motion=True) as source:
        taken = list(source.frames(lambda time: time * 25 % 4 == 0))
    assert [frame.index for frame in taken] == [0, 4, 8]
    assert [frame.motion.refreshed for frame in taken] == [True, False, False]
    assert [bool((frame.motion.cells[2:4] > 1).any()) for frame in taken] == [False, True, False]


def test_an_i_picture_that_nobody_takes_makes_the_next_frame_whole(tmp_path):
    with open_source(
        str(write_moving(tmp_path / "a.mp4", "libx264", **X264)), motion=True
    ) as source:
        taken = list(source.frames(lambda time: time * 25 % 5 == 0))
    # I pictures are 0, 12 and 24
    assert [frame.index for frame in taken if frame.motion.refreshed] == [0, 15, 25]


@pytest.mark.parametrize("motion", [True, False])
def test_pictures_are_let_go_without_the_garbage_collector(motion, tmp_path):
    """Each holds megabytes; in reference cycles, a second of them would wait for it."""
    path = write_moving(tmp_path / "a.mp4", "libx264", **X264)
    gc.collect()
    gc.disable()
    try:
        with open_source(str(path), motion=motion) as source:
            taken = sum(1 for _ in source)
            held = sum(type(each) is av.VideoFrame for each in gc.get_objects())
    finally:
        gc.enable()
    assert taken == 30
    assert held < 5


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx265", "mp4"),
        ("libvpx-vp9", "webm"),
        pytest.param("libsvtav1", "mp4", marks=pytest.mark.slow),
    ],
)
def test_codecs_without_vectors_tell_their_i_pictures_and_say_so(codec, suffix, tmp_path):
    warnings: list[str] = []
    told = [
        frame.motion
        for frame in motions(write_moving(tmp_path / f"a.{suffix}", codec), warn=warnings.append)
    ]
    assert all(motion.cells is None for motion in told)
    assert told[0].refreshed
    assert 2 <= sum(motion.refreshed for motion in told) <= 10
    assert len(warnings) == 1
    assert "compared instead" in warnings[0]


def test_codecs_of_single_pictures_tell_nothing(tmp_path):
    path = write_moving(tmp_path / "a.avi", "mjpeg")
    assert all(frame.motion is None for frame in motions(path))


def test_who_does_not_ask_is_told_nothing(tmp_path):
    path = write_moving(tmp_path / "a.mp4", "libx264", **X264)
    assert all(frame.motion is None for frame in open_source(str(path)))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1)])
def test_motion_is_turned_like_the_picture(matrix, tmp_path):
    """Where cells say that something moves, pixels differ; sizes are no multiples of a cell, so the
    cut cells come first when turned."""
    path = write_moving(tmp_path / "a.mp4", "libx264", size=(168, 104), **X264)
    turn(path, matrix)
    before, overlap = None, []
    for frame in motions(path):
        height, width = frame.image.shape[:2]
        rows, columns = frame.motion.cells.shape
        assert (frame.motion.top, frame.motion.left) <= (0, 0)
        assert rows * 16 + frame.motion.top >= height
        assert columns * 16 + frame.motion.left >= width
        if before is not None and not frame.motion.refreshed:
            differs = np.abs(frame.image.astype(int) - before).max(-1) > 40
            y, x = np.nonzero(differs)
            cell = frame.motion.cells[(y - frame.motion.top) // 16, (x - frame.motion.left) // 16]
            overlap.append(np.mean(cell > 0.5))
        before = frame.image.astype(int)
    assert np.mean(overlap) > 0.95


records = st.lists(
    st.tuples(
        st.integers(-40, 80),
        st.integers(-40, 60),
        st.integers(-300, 300),
        st.integers(-300, 300),
        st.integers(0, 8),
    ),
    max_size=40,
)


@given(records)
def test_the_longest_vector_of_each_cell(vectors):
    height, width = 40, 56
    longest = longest_vectors(np.array(vectors, VECTORS), height, width)
    assert longest.shape == (3, 4)
    for row in range(3):
        for column in range(4):
            lengths = [
                (dx**2 + dy**2) ** 0.5 / max(scale, 1)
                for x, y, dx, dy, scale in vectors
                if 16 * row <= y < 16 * row + 16 and 16 * column <= x < 16 * column + 16
            ]
            assert longest[row, column] == pytest.approx(max(lengths, default=np.inf))


motion_of = st.builds(
    lambda refreshed, cells: Motion(
        refreshed, None if cells is None else np.array(cells, np.float32).reshape(1, -1)
    ),
    st.booleans(),
    st.none() | st.lists(st.floats(0, 9, width=32), min_size=2, max_size=2),
)


@given(st.lists(motion_of, min_size=1, max_size=5))
def test_motion_of_frames_left_out(told):
    total = None
    for motion in told:
        total = motion.after(total)
    since = max((i for i, motion in enumerate(told) if motion.refreshed), default=0)
    assert total.refreshed == any(motion.refreshed for motion in told)
    cells = [motion.cells for motion in told[since:]]
    if any(each is None for each in cells):
        assert total.cells is None
    else:
        np.testing.assert_array_equal(total.cells, np.max(cells, axis=0))


def test_a_picture_of_another_size_starts_anew():
    small, large = (Motion(False, np.ones(shape, np.float32)) for shape in ((1, 2), (2, 2)))
    assert large.after(small).refreshed


def test_frames_of_arrays_have_no_motion():
    assert Frame.of(frames(1)[0].image, Fraction(0)).motion is None
