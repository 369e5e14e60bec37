"""Large frames are resized when they are pushed: the same bits, and few bytes that wait."""

import gc
import weakref
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.sizes import examples
from support.systems import system

from vicort.runtime.core import Chunk, Frame
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.frame_grid import Grid, fit_grid
from vicort.runtime.session import Session
from vicort.runtime.stages import frame_reducer
from vicort.runtime.stages.frame_reducer import FrameReducer
from vicort.runtime.stages.job import Job
from vicort.runtime.stages.stages import Preprocess

TOKEN = 28  # pixels
SIDES = st.integers(28, 700)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=examples(90))
@given(
    sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3),
    fixed=st.sampled_from([None, (56, 84)]),
    largest=st.integers(0, 300_000),
)
def test_frames_that_are_reduced_first_give_the_same_bits(sizes, fixed, largest) -> None:
    """Whichever frames of a chunk are, and with letterboxing too."""
    device = HostDevice()
    stage = Preprocess(device.stream("preprocess"), device.preprocessor(fixed, 1))
    grid = Grid(2, 3) if fixed else fit_grid(*sizes[0], TOKEN, 50_000)
    frames = [Frame(noise(*size, seed), Fraction(seed), seed) for seed, size in enumerate(sizes)]
    reducer = FrameReducer(device, stage, lambda height, width: grid, TOKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_reducer, "MAX_WAITING_BYTES", largest)
        reduced = [reducer(frame) for frame in frames]
    for frame, small in zip(frames, reduced, strict=True):
        large = frame.image.nbytes > largest
        assert (small.image.shape[:2] == grid.pixels(TOKEN)) if large else (small is frame)
        assert small.shape == frame.image.shape[:2]
    made = []
    for each in (frames, reduced):
        out = np.empty((len(frames), *grid.pixels(TOKEN), 3), np.uint8)
        buffers = SimpleNamespace(frames_of=lambda chunk, out=out: out)
        job = Job(Chunk(0, 0, tuple(each), grid), buffers)
        stage.stream.run(stage.run_in_stream, job).done()
        assert [frame.shape for frame in job.chunk.frames] == [frame.shape for frame in each]
        made.append(out)
    device.close()
    assert np.array_equal(*made)


def alive(images: list[weakref.ref]) -> int:
    gc.collect()
    return sum(image() is not None for image in images)


@pytest.mark.parametrize("overlap", [True, False])
def test_images_of_frames_are_freed_when_they_are_resized(overlap: bool) -> None:
    """But for those of two chunks, which DALI holds."""
    with Session(FakeEngineSet(), system(), overlap=overlap, fps="source") as session:
        images = []
        for number in range(64):
            image = noise(64, 64, number)
            images.append(weakref.ref(image))
            session.push(Frame(image, Fraction(number, 2), number))
            del image
        waiting = session.inspect().chunk_frames
        session.inspect().pipeline.drain()
        assert alive(images) <= 2 * waiting


def test_large_frames_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reducer, "MAX_WAITING_BYTES", 1_000)
    images = []
    with Session(FakeEngineSet(), system(), fps="source") as session:
        for number in range(7):
            image = noise(64, 64, number)
            images.append(weakref.ref(image))
            session.push(Frame(image, Fraction(number, 2), number))
            del image
        assert session.inspect().chunk_frames > 7
        assert alive(images) <= 2
