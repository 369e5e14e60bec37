"""Statistics of the inputs of products, compared with those of transformers' own model."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from support.engine_sets import talking_checkpoint
from support.reference_model import load_reference, pixel_values
from support.videos import write_video

from vicort.export.activation_statistics import (
    HEAD,
    SAMPLE_ROWS,
    InputCollector,
    activation_statistics,
)
from vicort.export.calibration_clip import MAX_TOKENS, read_clip
from vicort.export.checkpoint import TINY, resolve
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.layers import Linear
from vicort.export.recipe import load_recipe, model_spec
from vicort.runtime.errors import ConfigError, SourceError

SECONDS = "testsrc:seconds=3"
PARTS = {  # of a layer: product of vicort, and one of transformers' with the same input
    "layers.{}.self_attn.joined": "language_model.layers.{}.self_attn.k_proj",
    "layers.{}.self_attn.o_proj": "language_model.layers.{}.self_attn.o_proj",
    "layers.{}.mlp.joined": "language_model.layers.{}.mlp.up_proj",
    "layers.{}.mlp.down_proj": "language_model.layers.{}.mlp.down_proj",
    "blocks.{}.attn.qkv": "visual.blocks.{}.attn.qkv",
    "blocks.{}.attn.proj": "visual.blocks.{}.attn.proj",
    "blocks.{}.mlp.joined": "visual.blocks.{}.mlp.gate_proj",
    "blocks.{}.mlp.down_proj": "visual.blocks.{}.mlp.down_proj",
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def spec_of(checkpoint, **changes):
    return model_spec("tiny", read_configuration(checkpoint), load_recipe("tiny", **changes))


@pytest.fixture(scope="module")
def of_tiny():
    checkpoint = resolve(TINY)
    spec = spec_of(checkpoint)
    clip = read_clip(SECONDS, spec, checkpoint)
    return clip, activation_statistics(clip, checkpoint, spec)


def by_transformers(clip, checkpoint) -> dict[str, torch.Tensor]:
    """The inputs [rows,in] of each linear layer in one pass over the same rows."""
    model, seen = load_reference(checkpoint), {}

    def keep(name):
        return lambda layer, inputs: seen.update({name: inputs[0].reshape(-1, inputs[0].shape[-1])})

    for name, layer in model.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(keep(name))
    frames = torch.from_numpy(np.concatenate([unit.frames for unit in clip.units]))
    pixels, grid = pixel_values(frames)
    ids = [*clip.prompt, *[model.config.video_token_id] * clip.tokens, *clip.question]
    with torch.no_grad():
        out = model.model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.from_numpy(clip.positions).long().T[:, None],
            pixel_values_videos=pixels,
            video_grid_thw=grid,
            use_cache=False,
        )
    return seen | {"head": out.last_hidden_state[0, -len(clip.question) :]}


def test_statistics_are_those_of_transformers_model(of_tiny):
    clip, found = of_tiny
    config = read_configuration(resolve(TINY))
    theirs = by_transformers(clip, resolve(TINY))
    names = {
        ours.format(index): name.format(index)
        for ours, name in PARTS.items()
        for index in range(
            config.vision.depth if ours.startswith("blocks") else config.language.layers
        )
    } | {"patch_embed": None, "merger.mlp.0": "visual.merger.mlp.0"}
    names |= {"merger.mlp.2": "visual.merger.mlp.2", "lm_head": "head"}
    ours = {name: each for graph in found.values() for name, each in graph.items()}
    assert ours.keys() == {f"{name}.weight" for name in names}
    for name, other in names.items():
        if other:
            x, statistics = theirs[other], ours[f"{name}.weight"]
            torch.testing.assert_close(statistics.largest, x.abs().amax(0), rtol=1e-3, atol=1e-4)
            mean = x.square().mean(0)
            torch.testing.assert_close(statistics.mean_square, mean, rtol=1e-3, atol=1e-6)


def test_a_sample_is_rows_that_the_product_got(of_tiny):
    clip, found = of_tiny
    theirs = by_transformers(clip, resolve(TINY))["language_model.layers.1.mlp.down_proj"]
    sample = found["llm"]["layers.1.mlp.down_proj.weight"].sample
    assert len(sample) == min(SAMPLE_ROWS, len(clip.positions))
    nearest = torch.cdist(sample, theirs).amin(1)
    assert nearest.max() < 1e-3 * sample.norm(dim=1).max()


def test_each_graph_has_its_products_and_the_head_sees_the_question(of_tiny):
    clip, found = of_tiny
    assert found.keys() == {"vision", "llm", "head"}
    assert len(found["head"][HEAD].sample) == len(clip.question)
    for graph in found.values():
        for each in graph.values():
            assert each.largest.shape == each.mean_square.shape == each.sample.shape[1:]
            assert each.sample.dtype == each.mean_square.dtype == torch.float32
            assert (each.mean_square <= each.largest.square() * 1.0001).all()


def test_a_collector_counts_every_call_and_samples_each_evenly():
    layer = torch.nn.Sequential(Linear(3, 2))
    inputs = InputCollector(calls=2, sample_rows=4)
    first, second = torch.arange(24.0).reshape(2, 4, 3), -torch.arange(30.0).reshape(10, 3)
    with inputs.watching(layer), torch.no_grad():
        layer(first)
        layer(second)
    layer(100 * first)  # after it ended
    found = inputs.statistics()["0.weight"]
    rows = torch.cat([first.reshape(-1, 3), second])
    assert torch.equal(found.largest, rows.abs().amax(0))
    torch.testing.assert_close(found.mean_square, rows.square().mean(0))
    assert torch.equal(found.sample, rows[[0, 4, 8, 13]])


def test_frames_of_any_size_and_a_clip_of_one_second(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(talking_checkpoint(), checkpoint)
    spec = spec_of(checkpoint, max_pixels=20_000)
    clip = read_clip("testsrc:seconds=1,size=320x180", spec, checkpoint)
    assert [unit.grid.tokens for unit in clip.units] == [spec.grid(180, 320).tokens]
    found = activation_statistics(clip, checkpoint, spec)
    rows = len(clip.prompt) + clip.tokens + len(clip.question)
    assert len(found["llm"]["layers.0.mlp.joined.weight"].sample) == rows == len(clip.positions)


def test_a_long_clip_is_read_up_to_a_number_of_tokens():
    checkpoint = resolve(TINY)
    spec = spec_of(checkpoint)
    clip = read_clip("testsrc:seconds=300,size=112x112,fps=2", spec, checkpoint)
    assert clip.tokens == MAX_TOKENS
    assert len(clip.positions) == MAX_TOKENS + len(clip.prompt) + len(clip.question)


def test_a_fingerprint_is_of_what_was_read_and_not_of_the_name(tmp_path):
    checkpoint = resolve(TINY)
    spec = spec_of(checkpoint)
    prints = []
    for name, noise in (("one", False), ("other", False), ("third", True)):
        path = tmp_path / f"{name}.mp4"
        write_video(path, 30, noise=noise)
        prints.append(read_clip(str(path), spec, checkpoint).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("clip", "error", "says"),
    [
        ("/no/such.mp4", SourceError, "--calibration: no such file /no/such.mp4: give a file"),
        (__file__, SourceError, "cannot be opened as a video"),
        ("-", ConfigError, "--calibration - is a live source"),
    ],
)
def test_a_clip_that_cannot_be_read_is_refused_in_one_line(clip, error, says):
    checkpoint = resolve(TINY)
    with pytest.raises(error, match=says) as raised:
        read_clip(clip, spec_of(checkpoint), checkpoint)
    assert "\n" not in str(raised.value)
