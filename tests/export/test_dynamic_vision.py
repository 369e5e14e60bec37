"""The vision graphs that take frames of any size, against transformers and their fixed twins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference_model import (
    load_reference,
    pixel_values,
    random_frames,
    write_random_checkpoint,
)
from support.sizes import examples, slow
from torch import Tensor

from vicort.export.graphs import export_graph, export_program, signatures, write_graph
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.pruned_vision import pruned
from vicort.export.qwen2_5_vl.vision import HIDDEN, attend, fuse_attention
from vicort.export.qwen2_5_vl.weights import load_dynamic_vision, load_vision
from vicort.export.recipe import load_recipe, model_spec
from vicort.runtime.frame_grid import Grid
from vicort.runtime.vision_windows import (
    arrange,
    grid_inputs,
    most_windows,
    pruned_grid_inputs,
    segments_of,
)

# windows are 4 tokens a side: grids below, at, between and above it, and those of the default limit
GRIDS = [(5, 6), (3, 9), (1, 1), (1, 7), (4, 4), (9, 2), (8, 12), (8, 14), (14, 8), (11, 11)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("any-size")
    # a layer of attention within windows, and one of full attention
    vision = {"window_size": 112, "depth": 2, "fullatt_block_indexes": [1]}
    write_random_checkpoint(folder, "tiny", seed=2, vision=vision)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return load_dynamic_vision(checkpoint, read_configuration(checkpoint))


@pytest.fixture(scope="module")
def fused(checkpoint):
    encoder = load_dynamic_vision(checkpoint, read_configuration(checkpoint))
    fuse_attention(encoder)
    return encoder


@pytest.fixture(scope="module")
def reference(checkpoint):
    return load_reference(checkpoint).model.visual


def indices(arrays: dict[str, np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays.values()]


def segments(frames: Tensor) -> Tensor:
    return frames.reshape(len(frames), -1, 14 * 3)


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
@pytest.mark.parametrize("form", ["encoder", "fused"])
def test_one_encoder_equals_transformers_on_every_grid(form, reference, rows, columns, request):
    encoder = request.getfixturevalue(form)
    frames = random_frames(2, 28 * rows, 28 * columns, seed=rows)
    pixels, grid = pixel_values(frames)
    with torch.no_grad():
        expected = reference(pixels, grid_thw=grid).pooler_output.unflatten(0, (2, -1))
        found = encoder(segments(frames), *indices(grid_inputs(Grid(rows, columns), 14, 2, 4)))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.05  # the features are not all alike


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (1, 7), (4, 4), (8, 14)])
def test_it_equals_the_encoder_of_that_size_to_the_last_bit(checkpoint, encoder, rows, columns):
    """And so do the pruned ones."""
    frames = random_frames(2, 28 * rows, 28 * columns, seed=rows)
    grid = Grid(rows, columns)
    fixed = load_vision(checkpoint, read_configuration(checkpoint), 28 * rows, 28 * columns)
    kept = torch.stack([torch.randperm(grid.tokens)[: (grid.tokens + 1) // 2] for _ in range(2)])
    kept[1, 1:] = -1
    with torch.no_grad():
        found = encoder(segments(frames), *indices(grid_inputs(grid, 14, 2, 4)))
        assert torch.equal(found, fixed(frames))
        some = pruned(encoder)(
            segments(frames), kept.int(), *indices(pruned_grid_inputs(grid, 14, 2, 4))
        )
        assert torch.equal(some, pruned(fixed)(frames, kept.int()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_is_attention_also_where_cells_are_empty(dtype):
    """bfloat16: within two roundings of the result that float32 gives."""
    q, k, v = (torch.randn(6, 4, 9, 16, dtype=dtype) for _ in range(3))
    bias = torch.zeros(6, 1, 1, 9).masked_fill(torch.rand(6, 1, 1, 9) < 0.4, HIDDEN)
    bias[..., 0] = 0
    exact = attend(q.float(), k.float(), v.float(), bias, False)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7 * exact.abs().max().item()
    for form in (True, False):
        found = attend(q, k, v, bias, form)
        torch.testing.assert_close(found.float(), exact, atol=tolerance, rtol=0)


def test_the_exported_program_holds_fused_attention_as_one_operation(checkpoint, fused):
    spec = model_spec("any", read_configuration(checkpoint), load_recipe("any"))
    graph = signatures(spec, "fp32")["vision"]
    program, _ = export_program(fused, graph, "cpu")
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("scaled_dot_product_attention" in name for name in called) == 2
    assert not any("softmax" in name for name in called)


@settings(max_examples=examples(40))
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))
def test_segments_are_the_pixels_of_patches(rows, columns, merge, patch):
    """[height,width,3] has each row of each patch side by side in memory."""
    height, width = rows * merge * patch, columns * merge * patch
    frame = np.arange(height * width * 3).reshape(height, width, 3)
    patches = arrange(rows, columns, merge, 2).patches
    index = segments_of(patches, columns * merge, patch)
    found = frame.reshape(-1, patch * 3)[index].reshape(len(patches), patch, patch, 3)
    for number, (y, x) in enumerate(zip(*np.divmod(patches, columns * merge), strict=True)):
        expected = frame[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        assert np.array_equal(found[number], expected)


@pytest.mark.parametrize(
    ("chunk_frames", "max_pixels"), [(2, 56 * 56), *slow((4, 56 * 56), (2, 20_000), (4, 20_000))]
)
def test_the_graph_equals_the_encoder_at_every_limit(
    checkpoint, encoder, tmp_path, chunk_frames, max_pixels
):
    """Also where a chunk is always one unit, and a unit always one window."""
    recipe = load_recipe("any", chunk_frames=chunk_frames, max_pixels=max_pixels)
    spec = model_spec("any", read_configuration(checkpoint), recipe)
    graph = signatures(spec, "fp32")["vision"]
    model, _ = export_graph(encoder, graph)
    for _ in write_graph(model, tmp_path / "vision.onnx"):
        pass
    session = onnxruntime.InferenceSession(tmp_path / "vision.onnx")
    for size in ((100, 100), (200, 300), (900, 250)):
        grid = spec.grid(*size)
        frames = segments(random_frames(chunk_frames // 2, *grid.pixels(28), seed=1))
        inputs = grid_inputs(grid, 14, 2, 4)
        (found,) = session.run(None, {"frames": frames.numpy(), **inputs})
        with torch.no_grad():
            expected = encoder(frames, *indices(inputs))
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-5, rtol=0)


@given(st.integers(1, 300), st.integers(1, 5))
def test_no_grid_has_more_windows_than_a_strip(tokens, window):
    def count(rows: int, columns: int) -> int:
        return -(-rows // window) * -(-columns // window)

    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1)]
    assert max(count(*grid) for grid in grids) == most_windows(tokens, window)
