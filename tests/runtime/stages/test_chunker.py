"""The chunker: every frame once, in order, units whole, numbering without holes."""

from copy import copy
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.core import UNIT_FRAMES, Chunk, Frame
from vicort.runtime.errors import ConfigError
from vicort.runtime.frame_grid import Grid
from vicort.runtime.stages.chunker import Chunker

IMAGE = np.zeros((1, 1, 3), np.uint8)
STEPS = st.lists(st.sampled_from(["frame", "frame", "frame", "cut", "hold", "fork"]), max_size=80)


def frame(index: int) -> Frame:
    return Frame(IMAGE, Fraction(index, 2), index)


def one_grid(height: int, width: int) -> Grid:
    return Grid(1, 1)


def play(chunker: Chunker, step: str, count: int) -> Chunk | None:
    if step == "fork":
        pending, moment = chunker.pending, chunker.moment
        fork = chunker.fork()
        assert (chunker.pending, chunker.moment) == (pending, moment)
        assert (fork is not None) == (pending > 0)
        if fork:
            assert fork.forked
            assert fork.units == -(-pending // UNIT_FRAMES)
            assert 0 <= fork.encoded <= fork.units
        return None
    return {"cut": chunker.cut, "hold": chunker.hold}.get(step, lambda: chunker.add(frame(count)))()


def played(chunk_frames: int, steps: list[str]) -> tuple[list[Chunk], int]:
    """The chunks that come out of frames and cuts, and how many frames went in."""
    chunker, chunks, count = Chunker(chunk_frames, one_grid), [], 0
    for step in steps:
        chunk = play(chunker, step, count)
        count += step == "frame"
        chunks += [chunk] if chunk else []
        assert step != "hold" or chunker.pending % UNIT_FRAMES == 0
        assert step != "cut" or chunker.pending < UNIT_FRAMES
    last = chunker.flush()
    assert chunker.pending == 0
    assert chunker.flush() is None
    return chunks + ([last] if last else []), count


@given(st.integers(1, 6).map(lambda units: units * UNIT_FRAMES), STEPS)
def test_every_frame_once_in_whole_numbered_units(chunk_frames: int, steps: list[str]) -> None:
    chunks, count = played(chunk_frames, steps)
    frames = [
        frame
        for chunk in chunks
        for place, frame in enumerate(chunk.frames)
        if not place % UNIT_FRAMES or frame is not chunk.frames[place - 1]
    ]
    assert [frame.index for frame in frames] == list(range(count))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    unit = 0
    for chunk in chunks:
        assert 0 < len(chunk.frames) <= chunk_frames
        assert len(chunk.frames) % UNIT_FRAMES == 0
        assert chunk.first_unit == unit
        unit += chunk.units
    assert sum(len(chunk.frames) - chunk.repeated for chunk in chunks) == count
    if "hold" not in steps:
        # only the last frame of an odd stream is repeated: with frames taken in pairs, unit u holds
        # frames 2u and 2u + 1
        assert [chunk.repeated for chunk in chunks[:-1]] == [0] * (len(chunks) - 1)
        assert sum(chunk.repeated for chunk in chunks) == count % UNIT_FRAMES
        assert all(frame.index // UNIT_FRAMES == k // UNIT_FRAMES for k, frame in enumerate(frames))


@given(st.integers(1, 5).map(lambda units: units * UNIT_FRAMES), STEPS, st.booleans())
def test_a_fork_is_what_the_end_of_the_stream_would_give(chunk_frames, steps, encodes_once) -> None:
    """And each unit is encoded once, but half a unit, which is completed by a repeat."""
    steps = [step for step in steps if step != "cut"]
    chunker = Chunker(chunk_frames, one_grid, encodes_once=encodes_once)
    twin, known = Chunker(chunk_frames, one_grid), 0
    for count, step in enumerate(steps):
        if step != "fork":
            chunk = play(chunker, step, count)
            assert (chunk.frames if chunk else None) == getattr(
                play(twin, step, count), "frames", None
            )
            if chunk:
                assert chunk.encoded == known
                known = 0
        elif fork := chunker.fork():
            ended = copy(twin).flush()
            assert replace(fork, forked=False, encoded=0) == ended
            assert fork.encoded == known
            known = chunker.pending // UNIT_FRAMES if encodes_once else 0


def test_one_frame_is_completed_by_its_repeat() -> None:
    chunker = Chunker(4, one_grid)
    assert chunker.add(frame(0)) is None
    assert chunker.cut() is None
    chunk = chunker.flush()
    assert chunk is not None
    assert [item.index for item in chunk.frames] == [0, 0]
    assert (chunk.units, chunk.repeated) == (1, 1)


def test_nothing_in_nothing_out() -> None:
    assert Chunker(4, one_grid).cut() is None
    assert Chunker(4, one_grid).flush() is None


@pytest.mark.parametrize("chunk_frames", [0, -2, 1, 5])
def test_refuses_split_units(chunk_frames: int) -> None:
    with pytest.raises(ConfigError, match="whole units"):
        Chunker(chunk_frames, one_grid)
