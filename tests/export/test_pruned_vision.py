"""The pruned vision encoder against transformers' own blocks, run over what remains, and against
the whole encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine_sets import BACKENDS, chosen_set, engine_set
from support.reference_model import (
    load_reference,
    pixel_values,
    random_frames,
    write_random_checkpoint,
)
from support.sizes import examples

from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.pruned_vision import PrunedVisionEncoder
from vicort.export.qwen2_5_vl.vision import VisionEncoder
from vicort.export.qwen2_5_vl.weights import load_vision
from vicort.runtime.engines.engine_run import run_engine
from vicort.runtime.engines.engine_set import EngineSet

ROWS, COLUMNS = 3, 5  # tokens: windows of 2x2 and 4x4 are cut at both edges
TOKENS = ROWS * COLUMNS


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module", params=[56, 112], ids=["windows of 2x2 tokens", "windows of 4x4 tokens"]
)
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(
        folder, "tiny", seed=request.param, vision={"window_size": request.param}
    )
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint) -> VisionEncoder:
    return load_vision(checkpoint, read_configuration(checkpoint), 28 * ROWS, 28 * COLUMNS)


@pytest.fixture(scope="module")
def visual(checkpoint):
    return load_reference(checkpoint).model.visual


def transformers_over_the_rest(visual, frames: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """[len(kept), width]: transformers' patch embedding, blocks and merger over one unit's kept
    tokens, the others cut out."""
    side = visual.config.window_size // 28
    window = [(token // COLUMNS // side, token % COLUMNS // side) for token in kept]
    order = sorted(range(len(kept)), key=lambda place: window[place])
    pixels, _ = pixel_values(frames)
    x = visual.patch_embed(
        pixels.reshape(TOKENS, 4, -1)[[kept[place] for place in order]].flatten(0, 1)
    )
    spots = [
        (2 * (kept[place] // COLUMNS) + y, 2 * (kept[place] % COLUMNS) + x)
        for place in order
        for y in (0, 1)
        for x in (0, 1)
    ]
    rotary = visual.rotary_pos_emb(x, torch.tensor(spots))
    ends = [
        4 * (n + 1)
        for n in range(len(order))
        if n + 1 == len(order) or window[order[n]] != window[order[n + 1]]
    ]
    for index, block in enumerate(visual.blocks):
        full = index in visual.fullatt_block_indexes
        x = block(
            x,
            cu_seqlens=torch.tensor([0, ends[-1]] if full else [0, *ends], dtype=torch.int32),
            position_embeddings=rotary,
        )
    return visual.merger(x)[np.argsort(order)]


def test_with_every_token_kept_it_is_the_encoder(encoder):
    frames = random_frames(2, 28 * ROWS, 28 * COLUMNS, seed=1)
    everything = torch.arange(TOKENS, dtype=torch.int32).repeat(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            PrunedVisionEncoder(encoder)(frames, everything), encoder(frames), atol=1e-5, rtol=0
        )


@settings(max_examples=examples(12))
@given(
    kept=st.lists(
        st.permutations(range(TOKENS)).flatmap(
            lambda p: st.integers(1, TOKENS).map(lambda n: p[:n])
        ),
        min_size=1,
        max_size=3,
    )
)
def test_it_is_what_transformers_gives_where_the_other_patches_are_not_there(kept, visual, encoder):
    frames = random_frames(len(kept), 28 * ROWS, 28 * COLUMNS, seed=len(kept[0]))
    table = torch.full((len(kept), max(map(len, kept))), -1, dtype=torch.int32)
    for unit, tokens in enumerate(kept):
        table[unit, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    with torch.no_grad():
        features = PrunedVisionEncoder(encoder)(frames, table)
        for unit, tokens in enumerate(kept):
            expected = transformers_over_the_rest(visual, frames[2 * unit : 2 * unit + 2], tokens)
            torch.testing.assert_close(features[unit, : len(tokens)], expected, atol=2e-5, rtol=0)
            assert not features[unit, len(tokens) :].any()


def test_pixels_of_pruned_patches_do_not_matter(encoder):
    frames = random_frames(1, 28 * ROWS, 28 * COLUMNS, seed=2)
    other = frames.clone()
    other[:, 28:, :] = 255 - other[:, 28:, :]  # all rows of tokens but the first
    kept = torch.arange(COLUMNS, dtype=torch.int32)[None]
    with torch.no_grad():
        pruned = PrunedVisionEncoder(encoder)
        assert torch.equal(pruned(frames, kept), pruned(other, kept))
        assert not torch.equal(encoder(frames)[:, :COLUMNS], encoder(other)[:, :COLUMNS])


@pytest.mark.parametrize("backend", BACKENDS)
def test_engines_run_it_as_the_whole_graph_where_nothing_is_pruned(backend):
    random = np.random.default_rng(0)
    with EngineSet.open(engine_set(backend)) as engines:
        model = engines.manifest.model
        frames = random.integers(0, 256, (4, *model.fixed_size, 3), np.uint8)
        whole = run_engine(engines, "vision", {"frames": frames})["features"]
        for order in (np.arange(model.unit_tokens), random.permutation(model.unit_tokens)):
            kept = np.tile(order, (2, 1))
            inputs = {"frames": frames, "kept": kept.astype(np.int32)}
            np.testing.assert_allclose(
                run_engine(engines, "vision_pruned", inputs)["features"],
                whole[:, order],
                atol=1e-4,
            )
        some = {"frames": frames, "kept": np.array([[4, 1, -1], [0, 2, 5]], np.int32)}
        assert not run_engine(engines, "vision_pruned", some)["features"][0, 2].any()


def test_its_weights_lie_in_the_set_once():
    own = chosen_set() / "vision_pruned.bin"
    assert (
        not own.exists() or own.stat().st_size < (chosen_set() / "vision.bin").stat().st_size / 20
    )
