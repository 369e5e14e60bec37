"""Preprocessing against Hugging Face's own processor, and the letterbox against a plain statement
of it."""

import ctypes
import inspect
import sys
import threading
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicort.runtime.devices import preprocess
from vicort.runtime.devices.cuda import DeviceArray
from vicort.runtime.devices.preprocess import (
    Box,
    Preprocessor,
    image_graph,
    letterbox,
    surface_graph,
)
from vicort.runtime.devices.surface import Surface, to_rgb
from vicort.runtime.errors import DeviceError, VicortError
from vicort.runtime.frame_grid import fit_grid
from vicort.runtime.sources.pixels import Converter

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


# ---- the letterbox rule ----


@given(SIDES, SIDES, SIDES, SIDES)
def test_letterbox_is_the_largest_centred_box_of_the_same_aspect(
    height: int, width: int, into_height: int, into_width: int
) -> None:
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


# ---- pixels ----


@pytest.mark.parametrize(
    ("height", "width", "into"),
    [
        (448, 448, (224, 224)),
        (1080, 1080, (112, 112)),
        (180, 320, (252, 448)),
        (720, 1280, (252, 448)),
        (100, 100, (112, 112)),
    ],
)
def test_equals_hugging_face(height: int, width: int, into: tuple[int, int]) -> None:
    processors = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = processors.Qwen2VLImageProcessorPil(
        do_rescale=False,
        do_normalize=False,
        min_pixels=into[0] * into[1],
        max_pixels=into[0] * into[1],
    )
    image = picture(height, width)
    theirs = processor(images=[Image.fromarray(image)], return_tensors="np")
    grid = theirs["image_grid_thw"][0]
    assert (grid[1] * 14, grid[2] * 14) == into
    error = np.abs(
        processed([image], *into)[0].astype(float) - unpatched(theirs["pixel_values"], grid)
    )
    assert error.mean() < 0.25
    assert (error <= 2).mean() >= 0.99


def unpatched(patches: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Qwen2-VL's flattened patches [t h w, 3 * 2 * 14 * 14], in merge order, back to the picture
    [H, W, 3]."""
    _, rows, columns = grid
    blocks = patches.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 14, columns * 14, 3)


def test_bars_are_black_and_the_picture_lies_in_its_box() -> None:
    image = picture(180, 320)
    out = processed([image], 112, 112)[0]
    box = letterbox(180, 320, 112, 112)
    assert not out[: box.top].any()
    assert not out[box.top + box.height :].any()
    expected = np.asarray(
        Image.fromarray(image).resize((box.width, box.height), Image.Resampling.BICUBIC), float
    )
    assert np.abs(out[box.top : box.top + box.height] - expected).mean() < 0.25


def test_sizes_may_change_within_a_chunk_and_between_chunks() -> None:
    preprocessor = Preprocessor(112, 112)
    frames = [
        picture(180, 320, 1),
        picture(320, 180, 2),
        picture(97, 131, 3),
        picture(1, 1, 4),
        picture(112, 112, 5),
    ]
    together = np.empty((len(frames), 112, 112, 3), np.uint8)
    preprocessor(frames, together)
    for frame, expected in zip(frames, together, strict=True):
        alone = np.empty((1, 112, 112, 3), np.uint8)
        preprocessor([frame], alone)
        np.testing.assert_array_equal(alone[0], expected)


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    frame, other = picture(112, 112), picture(180, 320)
    np.testing.assert_array_equal(processed([frame], 112, 112)[0], frame)
    # beside one that is resized, through the filter
    np.testing.assert_array_equal(processed([frame, other], 112, 112)[0], frame)


def test_repeats_are_bit_equal_and_batches_of_any_length_pass() -> None:
    frames = [picture(90, 160, seed) for seed in range(70)]
    first, second = processed(frames, 56, 56), processed(frames, 56, 56)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[64:], processed(frames[64:], 56, 56))


def test_views_are_read_as_they_look() -> None:
    frame = picture(180, 320)
    turned = np.rot90(frame)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(
        processed([turned], 112, 112), processed([turned.copy()], 112, 112)
    )


def test_other_threads_run_meanwhile() -> None:
    """With the GIL held, the loop below would stand still for the whole run, which takes many
    switch intervals."""
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


# ---- sizes that follow the source ----


def stretched(frames: list, size: tuple[int, int], preprocessor: Preprocessor) -> np.ndarray:
    out = np.full((len(frames), *size, 3), 77, np.uint8)
    preprocessor(frames, out)
    return out


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (480, 640), (100, 300), (37, 41)])
def test_without_a_fixed_size_a_frame_is_what_the_models_processor_makes_of_it(size) -> None:
    """The same size, the whole of it picture, and the same pixels."""
    processors = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = processors.Qwen2VLImageProcessorPil(
        do_rescale=False, do_normalize=False, min_pixels=56 * 56, max_pixels=308 * 308
    )
    image = picture(*size)
    theirs = processor(images=[Image.fromarray(image)], return_tensors="np")
    grid = theirs["image_grid_thw"][0]
    into = fit_grid(*size, 28, 308 * 308).pixels(28)
    assert (grid[1] * 14, grid[2] * 14) == into
    found = stretched([image], into, Preprocessor())[0].astype(float)
    error = np.abs(found - unpatched(theirs["pixel_values"], grid))
    assert error.mean() < 0.25
    assert (error <= 2).mean() >= 0.99


def test_each_call_says_its_own_size() -> None:
    preprocessor, image, other = Preprocessor(), picture(180, 320), picture(320, 180)
    for frames, size in (([image], (56, 84)), ([image, other], (112, 28)), ([image], (56, 84))):
        found = stretched(frames, size, preprocessor)
        for frame, each in zip(frames, found, strict=True):
            expected = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC)
            assert np.abs(each - np.asarray(expected, float)).mean() < 0.25
    np.testing.assert_array_equal(stretched([image], (180, 320), preprocessor)[0], image)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_surfaces_fill_the_size_that_is_asked_for(quarters: int, mirrored: bool) -> None:
    lying = picture(180, 320)
    upright = np.ascontiguousarray(np.rot90(lying[:, ::-1] if mirrored else lying, quarters))
    made = surface(lying, quarters=quarters, mirrored=mirrored)
    size = fit_grid(*made.shape[:2], 28, 308 * 308).pixels(28)
    found = stretched([made], size, Preprocessor())[0]
    expected = np.asarray(
        Image.fromarray(upright).resize(size[::-1], Image.Resampling.BICUBIC), float
    )
    assert np.abs(found - expected).mean() < 3
    edge = np.ones(size, bool)
    edge[1:-1, 1:-1] = False
    assert np.abs(found[edge] - expected[edge]).mean() < 6  # no black bars


# ---- surfaces: what a GPU's video engine leaves ----

BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)


def surface(image: np.ndarray, shares: tuple[float, float] = BT601, **turns) -> Surface:
    """An image as FFmpeg makes 4:2:0 of it, in limited range."""
    planes = (
        av.VideoFrame.from_ndarray(image, format="rgb24")
        .reformat(format="nv12", dst_colorspace=1 if shares == BT709 else 5)
        .to_ndarray()
    )
    height, width = image.shape[:2]
    luma, chroma = (
        planes[:height, :, None].copy(),
        planes[height:].reshape(height // 2, width // 2, 2).copy(),
    )
    return Surface(luma, chroma, to_rgb(*shares, full=False), **turns)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shares", [BT601, BT709])
def test_colours_follow_the_standards(shares: tuple[float, float], full: bool) -> None:
    """RGB -> YCbCr as ITU-R BT.601 and BT.709 define it, and back."""
    red, blue = shares
    rgb = np.random.default_rng(0).uniform(0, 255, (100, 3))
    y = rgb @ (red, 1 - red - blue, blue)
    cb, cr = (rgb[:, 2] - y) / (2 * (1 - blue)), (rgb[:, 0] - y) / (2 * (1 - red))
    coded = (
        [y, cb + 128, cr + 128]
        if full
        else [16 + y * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255]
    )
    np.testing.assert_allclose(
        np.column_stack([*coded, np.ones(100)]) @ to_rgb(red, blue, full).T, rgb, atol=1e-3
    )


def test_a_surface_of_one_colour_is_exact() -> None:
    rng = np.random.default_rng(0)
    luma, chroma = (
        rng.integers(0, 256, (64, 96, 1), dtype=np.uint8),
        np.full((32, 48, 2), (90, 200), np.uint8),
    )
    matrix = to_rgb(*BT709, full=False)
    expected = (
        np.concatenate([luma, np.broadcast_to((90.0, 200.0, 1.0), (64, 96, 3))], axis=-1) @ matrix.T
    )
    found = processed([Surface(luma, chroma, matrix)], 64, 96)[0]
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.51


@pytest.mark.parametrize("into", [(180, 320), (63, 112), (252, 448)])
@pytest.mark.parametrize("shares", [BT601, BT709])
def test_surfaces_equal_a_plain_statement(
    into: tuple[int, int], shares: tuple[float, float]
) -> None:
    """Pillow resizes each plane, then the matrix, which doubles what rounding does to a colour
    difference."""
    made = surface(picture(180, 320), shares)
    planes = [made.luma[..., 0], made.chroma[..., 0], made.chroma[..., 1]]
    resized = [
        np.asarray(Image.fromarray(plane).resize(into[::-1], Image.Resampling.BICUBIC), float)
        for plane in planes
    ]
    expected = np.clip(np.stack([*resized, np.ones(into)], axis=-1) @ made.to_rgb.T, 0, 255)
    error = np.abs(processed([made], *into)[0] - expected)
    assert error.mean() < 0.75
    assert (error <= 3).mean() >= 0.99


@pytest.mark.parametrize("shares", [BT601, BT709])
def test_surfaces_look_like_images(shares: tuple[float, float]) -> None:
    """FFmpeg's fast conversion is up to 3 steps darker; another matrix is 8 and more away."""
    made = surface(picture(180, 320), shares)
    frame = av.VideoFrame.from_ndarray(
        np.concatenate([made.luma.reshape(-1), made.chroma.reshape(-1)]).reshape(270, 320),
        format="nv12",
    )
    frame.colorspace = 1 if shares == BT709 else 5
    error = np.abs(
        processed([made], 63, 112).astype(int) - processed([Converter()(frame)], 63, 112)
    )
    assert (error <= 4).mean() >= 0.97


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_surfaces_come_out_upright_in_their_box(quarters: int, mirrored: bool) -> None:
    lying = picture(180, 320)
    upright = np.ascontiguousarray(np.rot90(lying[:, ::-1] if mirrored else lying, quarters))
    made = surface(lying, quarters=quarters, mirrored=mirrored)
    assert made.shape == upright.shape
    found, expected = processed([made], 84, 112)[0], processed([upright], 84, 112)[0]
    assert np.abs(found.astype(int) - expected).mean() < 3
    box = letterbox(*upright.shape[:2], 84, 112)
    assert not found[: box.top].any()
    assert not found[:, : box.left].any()
    assert not found[:, box.left + box.width :].any()


def test_both_kinds_in_one_chunk_keep_their_places() -> None:
    kinds = [
        picture(90, 160, 1),
        surface(picture(90, 160, 2)),
        surface(picture(160, 90, 3)),
        picture(112, 112, 4),
        surface(picture(90, 160, 5)),
    ]
    together = processed(kinds, 112, 112)
    for kind, found in zip(kinds, together, strict=True):
        np.testing.assert_array_equal(found, processed([kind], 112, 112)[0])


# ---- on a GPU: the graphs, and the order of the calls ----


@pytest.mark.parametrize("size", [(56, 112), (None, None)])
@pytest.mark.parametrize("graph", [image_graph, surface_graph])
def test_graphs_hold_together_on_a_gpu(graph, size) -> None:
    """DALI checks what each operator takes where when it writes a graph down, which needs no
    GPU."""
    written = {
        device: graph(*size, device)(batch_size=4, num_threads=1, device_id=None).serialize()
        for device in ("cpu", "gpu")
    }
    assert b"gpu" in written["gpu"]
    assert b"gpu" not in written["cpu"]


def test_says_so_if_dali_does_not_take_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self) -> None:
        raise RuntimeError(
            "You are trying to create a GPU DALI pipeline while CUDA is not available.\nmore"
        )

    from nvidia.dali import Pipeline

    monkeypatch.setattr(Pipeline, "build", fails)
    with pytest.raises(VicortError, match=r"cannot use the gpu.*CUDA is not available") as failure:
        Preprocessor(56, 56, device="gpu")
    assert "\n" not in str(failure.value)


class RecordingPipeline:
    """Takes the calls of a DALI pipeline; what `run` gives records its copy."""

    def __init__(self, calls: list) -> None:
        self.calls = calls

    def feed_input(self, name: str, values: list, *, cuda_stream: int | None) -> None:
        self.calls.append((name, len(values), cuda_stream))

    def run(self, stream: int):
        self.calls.append(("run", stream))
        return (self,)

    def copy_to_external(
        self, pointer: ctypes.c_void_p, stream: ctypes.c_void_p, *, non_blocking: bool
    ) -> None:
        self.calls.append(("copy", pointer.value, stream.value, non_blocking))


def test_on_a_gpu_everything_goes_to_the_callers_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []
    monkeypatch.setattr(
        preprocess, "_built", lambda graph, device, threads: RecordingPipeline(calls)
    )
    stream = SimpleNamespace(
        handle=0xABC, notify=lambda work, *held: calls.append(("held", type(held[0])))
    )
    out = DeviceArray(None, 4096, (67, 56, 112, 3), np.uint8)
    frames = [picture(56, 112)] * 65 + [surface(picture(90, 160))] * 2
    Preprocessor(56, 112, device="gpu")(frames, out, stream)
    frame = 56 * 112 * 3
    run, held = ("run", 0xABC), ("held", RecordingPipeline)
    images = [[("frames", n, None), ("sizes", n, None), ("starts", n, None), run] for n in (64, 1)]
    surfaces = [
        ("luma", 2, 0xABC),
        ("chroma", 2, 0xABC),
        *((name, 2, None) for name in ("sizes", "colours", "angles", "mirrored", "starts")),
        run,
    ]
    copies = [("copy", 4096 + start * frame, 0xABC, True) for start in (0, 64, 65)]
    assert calls == [
        *images[0],
        copies[0],
        held,
        *images[1],
        copies[1],
        held,
        *surfaces,
        copies[2],
        held,
    ]


@pytest.mark.parametrize("lost", [False, True])
def test_a_gpu_that_fails_under_dali_is_one_line(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingPipeline(RecordingPipeline):
        def run(self, stream: int):
            raise RuntimeError("CUDA runtime API error cudaErrorIllegalAddress (700):\nand more")

    def memory() -> None:
        if lost:
            raise DeviceError("the GPU failed")

    monkeypatch.setattr(preprocess, "_built", lambda graph, device, threads: FailingPipeline([]))
    stream = SimpleNamespace(handle=0xABC, device=SimpleNamespace(memory=memory))
    out = DeviceArray(None, 4096, (1, 56, 112, 3), np.uint8)
    with pytest.raises(DeviceError) as failure:
        Preprocessor(56, 112, device="gpu")([picture(56, 112)], out, stream)
    told = str(failure.value)
    assert told == "the GPU failed" if lost else "(CUDA runtime API error cudaError" in told
    assert "\n" not in told


def test_dali_has_the_verbs_that_the_gpu_path_calls() -> None:
    from nvidia.dali import Pipeline
    from nvidia.dali.backend import TensorListGPU

    assert "cuda_stream=None, /" in str(inspect.signature(Pipeline.run))
    assert (
        "ptr: object, cuda_stream: object = None, non_blocking: bool = False"
        in TensorListGPU.copy_to_external.__doc__
    )
