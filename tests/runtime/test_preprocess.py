"""Preprocessing against Hugging Face's own processor, and the letterbox against a plain statement of it."""

import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicort.runtime.errors import VicortError
from vicort.runtime.preprocess import Box, Preprocessor, letterbox

SIDES = st.integers(1, 5000)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour fields with sharp-edged squares on them: what video frames are made of."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        image[top : top + height // 5, left : left + width // 5] = rng.integers(0, 256, 3)
    return image


def processed(frames: list[np.ndarray], height: int, width: int) -> np.ndarray:
    out = np.full((len(frames), height, width, 3), 77, np.uint8)
    Preprocessor(height, width)(frames, out)
    return out


# ---- the letterbox rule ---------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, SIDES, SIDES)
def test_letterbox_is_the_largest_centred_box_of_the_same_aspect(height: int, width: int, into_height: int, into_width: int) -> None:
    box = letterbox(height, width, into_height, into_width)
    scale = min(Fraction(into_height, height), Fraction(into_width, width))
    assert box.height <= into_height
    assert box.width <= into_width
    assert box.height == into_height or box.width == into_width
    assert abs(box.height - height * scale) <= Fraction(1, 2) or box.height == 1
    assert abs(box.width - width * scale) <= Fraction(1, 2) or box.width == 1
    assert 0 <= (into_height - box.height) - 2 * box.top <= 1
    assert 0 <= (into_width - box.width) - 2 * box.left <= 1


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((180, 320), Box(24, 0, 63, 112)),
        ((320, 180), Box(0, 24, 112, 63)),
        ((500, 500), Box(0, 0, 112, 112)),
        ((1, 4000), Box(55, 0, 1, 112)),
        ((224, 225), Box(0, 0, 112, 112)),  # 111.502 rounds up
    ],
)
def test_letterbox_examples(size: tuple[int, int], box: Box) -> None:
    assert letterbox(*size, 112, 112) == box


# ---- pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "into"),
    [(448, 448, (224, 224)), (1080, 1080, (112, 112)), (180, 320, (252, 448)), (720, 1280, (252, 448)), (100, 100, (112, 112))],
)
def test_equals_hugging_face(height: int, width: int, into: tuple[int, int]) -> None:
    processors = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = processors.Qwen2VLImageProcessorPil(
        do_rescale=False, do_normalize=False, min_pixels=into[0] * into[1], max_pixels=into[0] * into[1]
    )
    image = picture(height, width)
    theirs = processor(images=[Image.fromarray(image)], return_tensors="np")
    grid = theirs["image_grid_thw"][0]
    assert (grid[1] * 14, grid[2] * 14) == into
    error = np.abs(processed([image], *into)[0].astype(float) - unpatched(theirs["pixel_values"], grid))
    assert error.mean() < 0.25
    assert (error <= 2).mean() >= 0.99


def unpatched(patches: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Qwen2-VL's flattened patches [t h w, 3 * 2 * 14 * 14], in merge order, back to the picture [H, W, 3]."""
    _, rows, columns = grid
    blocks = patches.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 14, columns * 14, 3)


def test_bars_are_black_and_the_picture_lies_in_its_box() -> None:
    image = picture(180, 320)
    out = processed([image], 112, 112)[0]
    box = letterbox(180, 320, 112, 112)
    assert not out[: box.top].any()
    assert not out[box.top + box.height :].any()
    expected = np.asarray(Image.fromarray(image).resize((box.width, box.height), Image.Resampling.BICUBIC), float)
    assert np.abs(out[box.top : box.top + box.height] - expected).mean() < 0.25


def test_sizes_may_change_within_a_chunk_and_between_chunks() -> None:
    preprocessor = Preprocessor(112, 112)
    frames = [picture(180, 320, 1), picture(320, 180, 2), picture(97, 131, 3), picture(1, 1, 4), picture(112, 112, 5)]
    together = np.empty((len(frames), 112, 112, 3), np.uint8)
    preprocessor(frames, together)
    for frame, expected in zip(frames, together, strict=True):
        alone = np.empty((1, 112, 112, 3), np.uint8)
        preprocessor([frame], alone)
        np.testing.assert_array_equal(alone[0], expected)


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    frame, other = picture(112, 112), picture(180, 320)
    np.testing.assert_array_equal(processed([frame], 112, 112)[0], frame)
    np.testing.assert_array_equal(processed([frame, other], 112, 112)[0], frame)  # beside one that is resized, through the filter


def test_repeats_are_bit_equal_and_batches_of_any_length_pass() -> None:
    frames = [picture(90, 160, seed) for seed in range(70)]
    first, second = processed(frames, 56, 56), processed(frames, 56, 56)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[64:], processed(frames[64:], 56, 56))


def test_views_are_read_as_they_look() -> None:
    frame = picture(180, 320)
    turned = np.rot90(frame)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(processed([turned], 112, 112), processed([turned.copy()], 112, 112))


def test_other_threads_run_meanwhile() -> None:
    """With the GIL held, the loop below would stand still for the whole run, which takes many switch intervals."""
    frames, out = [picture(1080, 1920)] * 16, np.empty((16, 112, 112, 3), np.uint8)
    preprocessor = Preprocessor(112, 112)
    preprocessor(frames, out)
    worker = threading.Thread(target=preprocessor, args=(frames, out))
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
    assert turns > 1000


def test_refuses_an_output_of_another_shape() -> None:
    with pytest.raises(ValueError, match="1 frames into"):
        Preprocessor(112, 112)([picture(50, 50)], np.empty((2, 112, 112, 3), np.uint8))


def test_says_so_if_dali_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(VicortError, match="pip install nvidia-dali-cuda130"):
        Preprocessor(112, 112)
