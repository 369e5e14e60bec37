"""Checkpoints of every published layout load alike; broken ones are refused with one line that
names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.reference_model import load_reference, write_random_checkpoint

from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_models
from vicort.runtime.errors import EngineError

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_random_checkpoint(folder, "tiny", seed=1)
    return folder


@pytest.fixture
def checkpoint(published, tmp_path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def state(folder: Path, dtype: torch.dtype = torch.float32) -> Tensors:
    vision, language, _, _ = load_models(folder, 56, 56, dtype)
    return {f"vision.{k}": v for k, v in vision.state_dict().items()} | {
        f"language.{k}": v for k, v in language.state_dict().items()
    }


def assert_equal(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def edit_json(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def old_key(key: str) -> str:
    return key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def new_key(key: str) -> str:
    old = old_key(key)
    return (
        f"model.{old}"
        if old.startswith("visual.")
        else old.replace("model.", "model.language_model.")
    )


def test_every_weight_is_transformers_own(published):
    """By name and value, but for the patch embedding, whose pixels are in another order."""
    reference = {
        old_key(key): value for key, value in load_reference(published).state_dict().items()
    }
    vision, language, _, _ = load_models(published, 56, 56)
    ours = {f"visual.{k}": v for k, v in vision.named_parameters()}
    ours |= {
        k if k.startswith("lm_head") else f"model.{k}": v
        for k, v in language.named_parameters(remove_duplicate=False)
    }
    patches = ours.pop("visual.patch_embed.weight").unflatten(1, (2, 14, 14, 3))
    assert torch.equal(
        patches.permute(0, 4, 1, 2, 3), reference.pop("visual.patch_embed.proj.weight")
    )
    assert_equal(ours, reference)


@pytest.mark.parametrize("rename", [old_key, new_key])
def test_both_forms_of_the_keys(published, checkpoint, rename):
    edit(checkpoint, lambda tensors: {rename(key): value for key, value in tensors.items()})
    assert {key.split(".")[0] for key in load_file(checkpoint / "model.safetensors")} == (
        {"visual", "model"} if rename is old_key else {"model"}
    )
    assert_equal(state(checkpoint), state(published))


def test_shards(published, tmp_path):
    write_random_checkpoint(tmp_path, "tiny", seed=1, shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_equal(state(tmp_path), state(published))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_stored_and_asked_types(published, checkpoint, stored, asked):
    edit(checkpoint, lambda tensors: {key: value.to(stored) for key, value in tensors.items()})
    vision, language, _, _ = load_models(checkpoint, 56, 56, asked)
    assert {p.dtype for model in (vision, language) for p in model.parameters()} == {asked}
    exact = load_models(published, 56, 56)[1].embed_tokens.weight
    assert torch.equal(language.embed_tokens.weight, exact.to(stored).to(asked))


def test_tied_head_is_the_embedding_itself(published):
    _, language, _, config = load_models(published, 56, 56)
    assert config.language.tied
    assert language.lm_head.weight is language.embed_tokens.weight


def test_tied_head_stored_twice(published, checkpoint):
    """Some tools write the tied head as well. Where it differs, transformers takes it to be a head
    of its own."""
    copy = lambda tensors: next(
        value for key, value in tensors.items() if key.endswith("embed_tokens.weight")
    ).clone()
    edit(checkpoint, lambda tensors: tensors | {"lm_head.weight": copy(tensors)})
    language = load_models(checkpoint, 56, 56)[1]
    assert language.lm_head.weight is language.embed_tokens.weight
    edit(checkpoint, lambda tensors: tensors | {"lm_head.weight": 2 * copy(tensors)})
    reference = load_reference(checkpoint)
    assert torch.equal(load_models(checkpoint, 56, 56)[1].lm_head.weight, reference.lm_head.weight)
    assert torch.equal(
        reference.lm_head.weight, 2 * reference.model.language_model.embed_tokens.weight
    )


def test_untied_head(tmp_path):
    write_random_checkpoint(tmp_path, "tiny", seed=2, tied=False)
    _, language, _, config = load_models(tmp_path, 56, 56)
    assert not config.language.tied
    assert torch.equal(language.lm_head.weight, load_reference(tmp_path).lm_head.weight)
    assert not torch.equal(language.lm_head.weight, language.embed_tokens.weight)


FLAT_3B = {  # config.json of Qwen/Qwen2.5-VL-3B-Instruct
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def test_flat_configuration_of_the_published_3b_model(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps(FLAT_3B))
    (checkpoint / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [151645, 151643]})
    )
    config = read_configuration(checkpoint)
    vision, language = config.vision, config.language
    assert (vision.depth, vision.width, vision.intermediate, vision.heads, vision.head_dim) == (
        32,
        1280,
        3420,
        16,
        80,
    )
    assert (vision.token_pixels, vision.window_tokens, vision.full_attention) == (
        28,
        4,
        (7, 15, 23, 31),
    )
    assert (language.layers, language.width, language.intermediate, language.vocabulary) == (
        36,
        2048,
        11008,
        151936,
    )
    assert (language.query_heads, language.kv_heads, language.head_dim, language.max_position) == (
        16,
        2,
        128,
        128000,
    )
    assert (language.sections, language.theta, language.epsilon, language.tied) == (
        (16, 24, 24),
        1e6,
        1e-6,
        True,
    )
    assert (config.tokens_per_second, config.fps, config.eos_tokens, config.video_token) == (
        2,
        2,
        (151645, 151643),
        151656,
    )


def test_flat_and_nested_configuration_are_read_alike(published, checkpoint):
    def flatten(content: dict) -> None:
        content |= {
            key: value
            for key, value in content.pop("text_config").items()
            if key not in ("model_type", "tie_word_embeddings")
        }
        rotary = content.pop("rope_parameters")
        content |= {
            "rope_theta": rotary["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rotary["mrope_section"]},
        }

    edit_json(checkpoint, "config.json", flatten)
    assert read_configuration(checkpoint) == read_configuration(published)
    assert_equal(state(checkpoint), state(published))


def test_newer_processor_files(published, checkpoint):
    content = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").unlink()
    (checkpoint / "processor_config.json").write_text(
        json.dumps({"image_processor": content, "video_processor": {"fps": 4}})
    )
    config = read_configuration(checkpoint)
    assert (config.vision, config.fps) == (read_configuration(published).vision, 4)


def without(ending: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        key: value for key, value in tensors.items() if not key.endswith(ending)
    }


def cut(ending: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        key: value[:-1].clone() if key.endswith(ending) else value for key, value in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layers.2.mlp.up_proj.weight"),
            "no weight 'layers.2.mlp.up_proj.weight' (1 missing) of the language model",
        ),
        (
            without("blocks.1.attn.qkv.bias"),
            "no weight 'blocks.1.attn.qkv.bias' (1 missing) of the vision model",
        ),
        (without("patch_embed.proj.weight"), "no weight 'patch_embed.weight'"),
        (
            cut("layers.0.self_attn.q_proj.bias"),
            "layers.0.self_attn.q_proj.bias' has shape [127], config.json implies [128]",
        ),
        (cut("patch_embed.proj.weight"), "patch_embed.proj.weight' has shape [127, 3, 2, 14, 14]"),
        (
            lambda tensors: tensors | {"visual.blocks.9.norm1.weight": torch.ones(128)},
            "'visual.blocks.9.norm1.weight' that does not fit config.json",
        ),
        (
            lambda tensors: tensors | {"adapter.weight": torch.ones(1)},
            "'adapter.weight' that Qwen2.5-VL does not have",
        ),
        (
            lambda tensors: {
                key: value.to(torch.int8) if key.endswith("up_proj.weight") else value
                for key, value in tensors.items()
            },
            "is stored as I8, allowed are F32, F16, BF16",
        ),
    ],
)
def test_wrong_weights_are_named(checkpoint, change, message):
    edit(checkpoint, change)
    assert_refused(checkpoint, message)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        load_models(folder, 56, 56)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c.update(model_type="llama"), "is of a 'llama' model"),
        ("config.json", lambda c: c["text_config"].pop("hidden_size"), "has no hidden_size"),
        (
            "config.json",
            lambda c: c["text_config"].update(hidden_act="gelu"),
            "hidden_act is 'gelu', only 'silu' is supported",
        ),
        (
            "config.json",
            lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn"),
            "rope_scaling type is 'yarn'",
        ),
        (
            "config.json",
            lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[1, 2, 3]),
            "must sum to 16",
        ),
        (
            "config.json",
            lambda c: c["text_config"].update(use_sliding_window=True),
            "use_sliding_window is True",
        ),
        (
            "config.json",
            lambda c: c["vision_config"].update(out_hidden_size=99),
            "out_hidden_size is 99, only 128 is supported",
        ),
        (
            "config.json",
            lambda c: c["vision_config"].update(window_size=14),
            "window_size is 14, at least 28",
        ),
        (
            "preprocessor_config.json",
            lambda c: c.update(image_std=[1, 0, 1]),
            "image_std is [1, 0, 1], allowed are three numbers",
        ),
        (
            "preprocessor_config.json",
            lambda c: c.update(rescale_factor=1),
            "rescale_factor is 1, only",
        ),
        (
            "preprocessor_config.json",
            lambda c: c.update(patch_size=16),
            "patch_size is 16, only 14",
        ),
        (
            "preprocessor_config.json",
            lambda c: c.update(fps=-1),
            "fps is -1, allowed is a positive",
        ),
        ("config.json", lambda c: c.update(text_config=7), "text_config is 'int'"),
        ("config.json", lambda c: c.update(vision_config=[7]), "vision_config is 'list'"),
        ("config.json", lambda c: c.update(video_token_id=-1), "video_token_id is -1, allowed are"),
        (
            "config.json",
            lambda c: c["text_config"].update(num_key_value_heads=3),
            "num_key_value_heads is 3, which does not divide",
        ),
        (
            "config.json",
            lambda c: c["text_config"]["rope_parameters"].update(rope_theta=float("nan")),
            "rope_theta is nan, allowed is a positive number",
        ),
    ],
)
def test_wrong_configuration_is_named(checkpoint, name, change, message):
    edit_json(checkpoint, name, change)
    assert_refused(checkpoint, message)


def test_damaged_files(checkpoint):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_refused(checkpoint, "model.safetensors is damaged")
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, "has no model.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text("[]")
    assert_refused(checkpoint, "is not an index of weights")
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    assert_refused(checkpoint, "has no model-00001-of-00002.safetensors")
    (checkpoint / "config.json").write_text("{")
    assert_refused(checkpoint, "config.json is not JSON")
    (checkpoint / "config.json").unlink()
    assert_refused(checkpoint, "has no config.json")
