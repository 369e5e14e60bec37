"""The model for export against transformers' own Qwen2.5-VL: random weights, float32, positions
always given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paged_model import PagedModel, streamed_answer
from support.reference_model import (
    Conversation,
    load_reference,
    pixel_values,
    random_frames,
    write_random_checkpoint,
)
from support.sizes import examples, slow
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vicort.export.qwen2_5_vl.configuration import (
    OBSERVED_ROWS,
    LanguageConfiguration,
    read_configuration,
)
from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.export.qwen2_5_vl.weights import load_language, load_models, load_vision
from vicort.runtime.errors import ConfigError
from vicort.runtime.vision_windows import arrange


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(folder, "tiny", seed=1)
    return folder


@pytest.fixture(scope="module")
def tiny_wide_windows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-112")
    write_random_checkpoint(folder, "tiny", seed=2, vision={"window_size": 112})
    return folder


def reference_features(folder: Path, frames: torch.Tensor) -> torch.Tensor:
    pixels, grid = pixel_values(frames)
    with torch.no_grad():
        return (
            load_reference(folder)
            .model.visual(pixels, grid_thw=grid)
            .pooler_output.unflatten(0, (len(frames) // 2, -1))
        )


def assert_features_equal(folder: Path, frames: torch.Tensor) -> None:
    expected = reference_features(folder, frames)
    vision = load_vision(folder, read_configuration(folder), *frames.shape[1:3])
    with torch.no_grad():
        torch.testing.assert_close(vision(frames), expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.05  # the features are not all alike


def test_vision_equals_transformers(tiny):
    assert_features_equal(tiny, random_frames(3, 112, 112, seed=0))


@pytest.mark.parametrize(
    ("rows", "columns"), [(5, 6), (3, 9), (1, 1), (1, 7), (4, 4), (9, 2), (8, 12)]
)
def test_vision_on_odd_grids(tiny_wide_windows, rows, columns):
    """Windows are 4 tokens a side: grids below, at, between and above it."""
    assert_features_equal(
        tiny_wide_windows, random_frames(1 if rows == 5 else 2, 28 * rows, 28 * columns, seed=rows)
    )


def test_vision_normalises_as_the_processor_does(tiny):
    """The patches that reach the model are those of transformers' image processor, which repeats an
    image to a unit."""
    image = random_frames(1, 84, 140, seed=3)[:1]
    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny)
    batch = processor([image[0].permute(2, 0, 1).numpy()], do_resize=False, return_tensors="pt")
    ours, grid = pixel_values(image.repeat(2, 1, 1, 1))
    assert batch["image_grid_thw"].tolist() == grid.tolist()
    torch.testing.assert_close(ours, batch["pixel_values"], atol=1e-5, rtol=0)


def test_units_are_independent(tiny):
    vision = load_vision(tiny, read_configuration(tiny), 84, 112)
    frames = random_frames(4, 84, 112, seed=4)
    with torch.no_grad():
        together = vision(frames)
        alone = torch.cat([vision(frames[2 * unit : 2 * unit + 2]) for unit in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(100, 112), (112, 0), (-28, 112), (112, 27)])
def test_image_size_must_fit_the_tokens(tiny, height, width):
    with pytest.raises(ConfigError, match="multiple of 28 pixels"):
        load_vision(tiny, read_configuration(tiny), height, width)


@settings(max_examples=examples(60))
@given(
    rows=st.integers(1, 13),
    columns=st.integers(1, 13),
    merge=st.integers(1, 3),
    window=st.integers(1, 5),
)
def test_windows_hold_every_patch_where_it_belongs(rows, columns, merge, window):
    """Two patches share a window exactly if their tokens lie in the same cell of a window x window
    raster."""
    windows = arrange(rows, columns, merge, window)
    y, x = np.divmod(windows.patches, columns * merge)
    assert sorted(windows.patches) == list(range(rows * columns * merge * merge))
    raster = (y // merge // window) * 100 + x // merge // window
    cell_window = np.repeat(np.arange(windows.count), windows.filled.shape[1])[windows.scatter]
    assert np.array_equal(
        raster[:, None] == raster[None], cell_window[:, None] == cell_window[None]
    )
    assert np.array_equal(windows.gather[windows.scatter], np.arange(len(windows.patches)))
    assert np.array_equal(np.flatnonzero(windows.filled.reshape(-1)), np.sort(windows.scatter))
    tokens = (y // merge * columns + x // merge).reshape(-1, merge * merge)
    assert (tokens == tokens[:, :1]).all()  # a token's patches lie side by side
    assert np.array_equal(tokens[windows.tokens, 0], np.arange(rows * columns))


def assert_answers_equal(
    folder: Path, talk: Conversation, chunks: list[int], length: int, page_tokens: int
) -> None:
    """Greedy tokens and their logits, streamed chunk by chunk through pages, against transformers'
    pass over everything."""
    expected_tokens, expected = talk.reference_answer(load_reference(folder), length)
    vision, language, _, config = load_models(folder, *talk.frames.shape[1:3])
    paged = PagedModel(language, config.language, slots=64, page_tokens=page_tokens)
    tokens, logits = streamed_answer(paged, vision, talk, chunks, length)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    assert tokens == expected_tokens
    assert expected.std() > 0.1


@pytest.mark.parametrize("chunks", [[6], [2, 1, 3], [1] * 6])
def test_streamed_answer_equals_one_pass(tiny, chunks):
    """Nothing is dropped: chunk borders, pages, padding rows and un-rotated keys must not show."""
    talk = Conversation(
        [5, 9, 3], random_frames(6, 84, 140, seed=5), [0, 1, 2, 5, 9, 40], [7, 8, 11, 30]
    )
    assert_answers_equal(tiny, talk, chunks, length=6, page_tokens=8)


@pytest.mark.parametrize(("units", "rows", "columns"), [(1, 5, 3), (2, 1, 6), (1, 1, 1)])
def test_streamed_answer_on_odd_grids(tiny_wide_windows, units, rows, columns):
    talk = Conversation(
        [5], random_frames(units, 28 * rows, 28 * columns, seed=6), list(range(units)), [7, 8]
    )
    assert_answers_equal(tiny_wide_windows, talk, [units], length=4, page_tokens=16)


def test_untied_head(tmp_path):
    write_random_checkpoint(tmp_path, "tiny", seed=3, tied=False)
    talk = Conversation([5, 9], random_frames(2, 56, 84, seed=7), [0, 1], [7, 8])
    assert_answers_equal(tmp_path, talk, [1, 1], length=4, page_tokens=16)


@pytest.mark.parametrize(
    ("sizes", "shard_size", "most"),
    [("tiny", "300KB", 100), *slow(("3b-widths", "700MB", 151_936))],
)
def test_published_weights_and_every_kind_of_cut_window(tmp_path, sizes, shard_size, most):
    """Grid 5x3 with windows of 4. Stored as bfloat16 in shards, as the published weights are."""
    write_random_checkpoint(tmp_path, sizes, seed=4, dtype=torch.bfloat16, shard_size=shard_size)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    prefix, question = (
        [token % most for token in tokens] for tokens in ([151_644, 872], [3838, 374, 419, 30])
    )
    talk = Conversation(prefix, random_frames(2, 140, 84, seed=8), [0, 2], question)
    assert_answers_equal(tmp_path, talk, [1, 1], length=2, page_tokens=16)


def alone(
    folder: Path, tokens: list[int], pos: torch.Tensor
) -> tuple[LanguageModel, LanguageConfiguration, list[torch.Tensor]]:
    """The model, its configuration, and what it gives for these rows when no page is there; token
    -1 comes with features of NaN."""
    config = read_configuration(folder)
    language, sizes = load_language(folder, config), config.language
    pool = torch.zeros(1, sizes.layers, sizes.kv_heads, 2, 4, sizes.head_dim)
    where, table = (
        torch.full((1, 1, 1, 4, 3), -1, dtype=torch.int32),
        torch.full((1, 1, 1, 1), -1, dtype=torch.int32),
    )
    segment = torch.zeros(len(tokens), dtype=torch.int32)
    until, ends = torch.full_like(segment, len(tokens)), torch.nonzero(pos[:, 0] >= 0)[-1].int()
    ids = torch.tensor(tokens)
    with torch.no_grad():
        text = language.embed_tokens(ids.clamp(min=0))
        features = torch.where((ids >= 0)[:, None], text, torch.nan)
        found = language(features, pos.int(), segment, until, ends, pool, where, table)
        return language, sizes, list(found)


def test_keys_values_and_mean_query_are_not_rotated(tiny):
    """In the first layer they are the projections of the normed embedding, wherever the tokens
    stand."""
    tokens = [4, 8, 15]
    language, sizes, (_, k, v, q, _) = alone(
        tiny, tokens, torch.arange(3)[:, None].expand(3, 3) * 7 + 100
    )
    attention = language.layers[0].self_attn
    with torch.no_grad():
        entering = language.layers[0].input_layernorm(language.embed_tokens(torch.tensor(tokens)))
        expected_q = attention.q_proj(entering).mean(0).reshape(sizes.query_heads, sizes.head_dim)
        torch.testing.assert_close(q[0], expected_q, atol=1e-5, rtol=0)
        torch.testing.assert_close(k[0].flatten(1), attention.k_proj(entering), atol=1e-5, rtol=0)
        torch.testing.assert_close(v[0].flatten(1), attention.v_proj(entering), atol=1e-5, rtol=0)


def projected_queries(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """[L,C,Hq,D], what each layer's q_proj of a transformers model gives in one pass, before any
    rotation."""
    seen: list[torch.Tensor] = []
    layers = model.model.language_model.layers
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, entered, left: seen.append(left[0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).unflatten(-1, (-1, layers[0].self_attn.head_dim))


@pytest.mark.parametrize("rows", [1, OBSERVED_ROWS - 1, OBSERVED_ROWS, 3 * OBSERVED_ROWS + 2])
def test_queries_of_the_last_rows_are_those_of_transformers(tiny, rows):
    """In every layer, oldest first, behind zeros; padding before, between and after does not
    show."""
    random = torch.Generator().manual_seed(rows)
    tokens = torch.randint(0, 40, (rows,), generator=random).tolist()
    places = torch.arange(rows)[:, None].expand(3, rows, 1)[..., 0].T  # [C,3]
    expected = projected_queries(
        load_reference(tiny), input_ids=torch.tensor([tokens]), position_ids=places.T[:, None]
    )
    spread = sorted(torch.randperm(2 * rows + 3, generator=random)[:rows].tolist())
    padded, pos = [-1] * (2 * rows + 3), torch.full((2 * rows + 3, 3), -1)
    for row, token, place in zip(spread, tokens, places, strict=True):
        padded[row], pos[row] = token, place
    for fed, positions in ((tokens, places), (padded, pos)):
        _, _, (*_, queries) = alone(tiny, fed, positions)
        assert queries.shape == (expected.shape[0], OBSERVED_ROWS, *expected.shape[2:])
        assert not queries[:, : max(OBSERVED_ROWS - rows, 0)].any()
        torch.testing.assert_close(
            queries[:, -min(rows, OBSERVED_ROWS) :], expected[:, -OBSERVED_ROWS:], atol=2e-5, rtol=0
        )


def test_padding_rows_change_nothing(tiny):
    """At the end or between the others, and with NaN in their features."""
    pos = torch.arange(3)[:, None].expand(3, 3)
    empty = torch.full((1, 3), -1)
    _, _, plain = alone(tiny, [4, 8, 15], pos)
    _, _, padded = alone(
        tiny, [4, 8, -1, 15, -1, 3], torch.cat([pos[:2], empty, pos[2:], empty, empty])
    )
    real = [0, 1, 3]
    for expected, found in zip(
        plain, (padded[0], padded[1][:, real], padded[2][:, real], *padded[3:]), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert all(out.isfinite().all() for out in padded)


def test_bfloat16_stays_near_float32(tiny):
    talk = Conversation([5, 9], random_frames(2, 84, 84, seed=9), [0, 1], [7, 8])
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        vision, language, _, config = load_models(tiny, 84, 84, dtype)
        assert {
            parameter.dtype for model in (vision, language) for parameter in model.parameters()
        } == {dtype}
        paged = PagedModel(language, config.language, slots=64, page_tokens=16, dtype=dtype)
        answers.append(streamed_answer(paged, vision, talk, [1, 1], length=1)[1][0])
    assert answers[1].dtype == torch.float32
    assert (answers[1] - answers[0]).norm() < 0.05 * answers[0].norm()
