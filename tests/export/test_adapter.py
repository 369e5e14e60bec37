"""LoRA adapters in PEFT's layout: merged as the paper says, refused where that cannot be done, and
covered by the manifest."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engine_sets import OPTIONS, checkpoint, live_set

from vicort.export import build
from vicort.export.checkpoint import checkpoint_hash, resolve
from vicort.export.qwen2_5_vl.adapter import read_adapter
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_language, load_vision
from vicort.export.recipe import embedded_adapter, load_recipe
from vicort.export.verify import compare
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import read_manifest

LANGUAGE = (
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.1.mlp.down_proj",
)
VISION = "model.visual.blocks.0.attn.qkv"
RANK, ALPHA = 4, 12


def stored_weights() -> dict[str, torch.Tensor]:
    """The random checkpoint's, under the names that modules have today."""
    held = load_file(checkpoint() / "model.safetensors")
    renamed = {
        key.replace("visual.", "model.visual.") if key.startswith("visual.") else key: value
        for key, value in held.items()
    }
    return {
        key.replace("model.layers.", "model.language_model.layers."): value
        for key, value in renamed.items()
    }


def write_adapter(
    folder: Path,
    modules: tuple[str, ...] = (*LANGUAGE, VISION),
    stored: torch.dtype = torch.float32,
    **config,
) -> Path:
    """An adapter of random matrices for layers of the random checkpoint, as PEFT would save it."""
    weights = stored_weights()
    generator, tensors = torch.Generator().manual_seed(7), {}
    for module in modules:
        out, into = weights[f"{module}.weight"].shape
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(
            RANK, into, generator=generator
        ).to(stored)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(
            out, RANK, generator=generator
        ).to(stored)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "target_modules": ["q_proj"],
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def loaded(adapter: Path | None, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every parameter of both models, under the checkpoint's names."""
    config, given = read_configuration(checkpoint()), read_adapter(adapter) if adapter else None
    language = load_language(checkpoint(), config, dtype, given)
    vision = load_vision(checkpoint(), config, 56, 56, dtype, given)
    ours = {f"model.language_model.{name}": value for name, value in language.named_parameters()}
    return ours | {f"model.visual.{name}": value for name, value in vision.named_parameters()}


def plain_merge(folder: Path, module: str, scale: float) -> np.ndarray:
    """W + scale * B A, in float64."""
    matrices = load_file(folder / "adapter_model.safetensors")
    down, up = (
        matrices[f"base_model.model.{module}.lora_{half}.weight"].double().numpy() for half in "AB"
    )
    weight = stored_weights()[f"{module}.weight"].double().numpy()
    return weight + scale * (up @ down)


@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_each_layer_is_w_plus_alpha_over_r_times_b_a_and_the_others_stay(tmp_path, rslora, scale):
    folder = write_adapter(tmp_path, use_rslora=rslora)
    base, ours = loaded(None), loaded(folder)
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    assert changed == {f"{module}.weight" for module in (*LANGUAGE, VISION)}
    for module in (*LANGUAGE, VISION):
        np.testing.assert_allclose(
            ours[f"{module}.weight"].numpy(),
            plain_merge(folder, module, scale),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_of_patterns(tmp_path: Path, rslora: bool) -> None:
    """The first pattern that ends a module's name counts, as in PEFT."""
    folder = write_adapter(
        tmp_path,
        use_rslora=rslora,
        rank_pattern={"down_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 5, "down_proj": 7, "blocks.[0-9]+.attn.qkv": 3},
        target_modules=r".*\.(q_proj|down_proj|qkv)",
        layers_to_transform=[0, 1],
        fan_in_fan_out=True,  # which PEFT takes back for linear layers
    )
    down = f"base_model.model.{LANGUAGE[1]}.lora_"
    edited(
        folder,
        lambda held: (
            held
            | {f"{down}A.weight": held[f"{down}A.weight"][:2].contiguous()}
            | {f"{down}B.weight": held[f"{down}B.weight"][:, :2].contiguous()}
        ),
    )
    ours = loaded(folder)
    for module, alpha, rank in ((LANGUAGE[0], ALPHA, RANK), (LANGUAGE[1], 5, 2), (VISION, 3, RANK)):
        scale = alpha / (rank**0.5 if rslora else rank)
        np.testing.assert_allclose(
            ours[f"{module}.weight"].numpy(),
            plain_merge(folder, module, scale),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_rows_have_the_lengths_of_dora(tmp_path: Path, suffix: str) -> None:
    folder = write_adapter(tmp_path, use_dora=True)
    generator = torch.Generator().manual_seed(8)
    modules = (*LANGUAGE, VISION)
    lengths = {
        module: torch.rand(len(stored_weights()[f"{module}.weight"]), generator=generator) + 0.5
        for module in modules
    }
    edited(
        folder,
        lambda held: (
            held
            | {
                f"base_model.model.{module}.lora_magnitude_vector{suffix}": length
                for module, length in lengths.items()
            }
        ),
    )
    ours = loaded(folder)
    for module in modules:
        merged = plain_merge(folder, module, ALPHA / RANK)
        rows = merged / np.linalg.norm(merged, axis=1, keepdims=True)
        np.testing.assert_allclose(
            ours[f"{module}.weight"].numpy(),
            rows * lengths[module].double().numpy()[:, None],
            rtol=1e-5,
            atol=1e-5,
        )


def test_lengths_without_dora_are_refused(tmp_path: Path) -> None:
    key = f"base_model.model.{VISION}.lora_magnitude_vector"
    folder = edited(write_adapter(tmp_path), lambda held: held | {key: torch.ones(3)})
    with pytest.raises(EngineError, match="has a magnitude of shape"):
        read_adapter(folder)


def test_bf16_is_rounded_once(tmp_path):
    folder = write_adapter(tmp_path, stored=torch.bfloat16)
    for module in LANGUAGE:
        exact = torch.from_numpy(plain_merge(folder, module, ALPHA / RANK)).float()
        assert (
            loaded(folder, torch.bfloat16)[f"{module}.weight"].float() - exact
        ).abs().max() <= exact.abs().max() / 256


def test_adapters_trained_with_the_older_names(tmp_path):
    """Before transformers 4.52 the language model's layers were `model.layers` and the eyes
    `visual`."""
    folder = write_adapter(tmp_path)
    expected, path = loaded(folder), folder / "adapter_model.safetensors"
    old = {
        key.replace("model.visual", "visual").replace("model.language_model", "model"): value
        for key, value in load_file(path).items()
    }
    save_file(old, path)
    assert {key.split(".")[2] for key in old} == {"model", "visual"}
    assert all(torch.equal(value, expected[name]) for name, value in loaded(folder).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' is not"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora' is not supported"),
        ({"use_dora": True}, "has a magnitude of shape None"),
        ({"layer_replication": [[0, 1]]}, "layer_replication [[0, 1]] is not supported"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens [1] is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices [1] is not supported"),
        ({"bias": "lora_only"}, "bias 'lora_only' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head'] is not supported"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern {'(': 3}"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern {'q_proj': 'x'}"),
        ({"alpha_pattern": [1]}, "alpha_pattern [1]"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path, change, message):
    with pytest.raises(EngineError) as caught:
        read_adapter(write_adapter(tmp_path, **change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def edited(folder: Path, change) -> Path:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


Q = f"base_model.model.{LANGUAGE[0]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda held: held | {"base_model.model.lm_head.weight": torch.zeros(2, 2)},
            "no LoRA of a linear layer",
        ),
        (
            lambda held: {key: value for key, value in held.items() if key != f"{Q}.lora_B.weight"},
            "shapes [[4, 128], None]",
        ),
        (
            lambda held: held | {f"{Q}.lora_B.weight": torch.zeros(128, 5)},
            "allowed are [r, in] and [out, r]",
        ),
        (lambda held: {}, "is empty"),
        (lambda held: held | {f"{Q}.lora_B.weight": torch.zeros(127, RANK)}, "adds [127, 128] to"),
        (
            lambda held: {
                key.replace("layers.0", "layers.99"): value for key, value in held.items()
            },
            "no weight of that name",
        ),
        (
            lambda held: {
                "base_model.model.lm_head.lora_A.weight": torch.zeros(2, 128),
                "base_model.model.lm_head.lora_B.weight": torch.zeros(101, 2),
            },
            "or a tied one",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path, change, message):
    folder = edited(write_adapter(tmp_path), change)
    with pytest.raises(EngineError) as caught:
        loaded(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(EngineError, match="no adapter in"):
        read_adapter(tmp_path / "nowhere")
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EngineError, match="is damaged"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"has no adapter_model\.safetensors"):
        read_adapter(folder)
    for text in ("[1]", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(EngineError, match="no LoRA's configuration"):
            read_adapter(folder)


def test_the_hash_covers_the_adapter(tmp_path):
    folder = write_adapter(tmp_path)
    hashes = {checkpoint_hash(checkpoint()), checkpoint_hash(checkpoint(), folder)}
    edited(folder, lambda held: held | {f"{Q}.lora_B.weight": torch.zeros(128, RANK)})
    hashes.add(checkpoint_hash(checkpoint(), folder))
    (folder / "adapter_config.json").write_text(
        (folder / "adapter_config.json").read_text().replace("12", "13")
    )
    hashes.add(checkpoint_hash(checkpoint(), folder))
    assert len(hashes) == 4


def test_built_engines_hold_the_merged_weights(capfd):
    folder, (model, adapter) = live_set(), embedded_adapter("tiny-live")
    capfd.readouterr()
    again = ["tiny-live", "--backend", "openvino", "--out", str(folder), "--verify"]
    assert build.main(again) == 0
    assert "is up to date" in capfd.readouterr().err
    assert read_manifest(folder).checkpoint == checkpoint_hash(resolve(model), adapter)
    # beside the model without the adapter
    assert not all(difference.passed for difference in compare(folder, resolve(model)))


def test_the_manifest_names_the_adapter(tmp_path, monkeypatch):
    class Building(Exception):
        pass

    planned = []

    def stop(folder, checkpoint, manifest, *_):
        planned.append(manifest)
        raise Building

    monkeypatch.setattr("vicort.export.build_set.write_engine_set", stop)
    adapter = write_adapter(tmp_path / "adapter")
    command = [str(checkpoint()), "--adapter", str(adapter), "--out", str(tmp_path / "set")]
    with pytest.raises(Building):
        build.main([*command, *OPTIONS])
    assert planned[0].checkpoint == checkpoint_hash(checkpoint(), adapter)
    assert shlex.join(["--adapter", str(adapter)]) in planned[0].build_command


@pytest.mark.slow
def test_built_engines_hold_the_merged_weights_of_any_adapter(tmp_path, capfd):
    adapter, out = write_adapter(tmp_path / "adapter"), tmp_path / "set"
    arguments = [
        str(checkpoint()),
        "--adapter",
        str(adapter),
        "--backend",
        "onnxruntime",
        "--out",
        str(out),
        *OPTIONS,
    ]
    assert build.main([*arguments, "--verify"]) == 0
    manifest = read_manifest(out)
    assert manifest.checkpoint == checkpoint_hash(checkpoint(), adapter)
    assert shlex.join(["--adapter", str(adapter)]) in manifest.build_command
    assert build.main(arguments) == 0
    assert "is up to date" in capfd.readouterr().err
    # beside the model without the adapter
    assert not all(difference.passed for difference in compare(out, checkpoint()))


def test_the_model_that_comes_with_an_adapter(capfd):
    model, folder = embedded_adapter("tiny-live")
    assert (model, (folder / "adapter_config.json").is_file()) == ("tiny", True)
    assert embedded_adapter("tiny") is embedded_adapter("/some/tiny-live") is None
    own = {"base", "adapter"}
    assert load_recipe("tiny-live").model_dump(exclude=own) == load_recipe("tiny").model_dump(
        exclude=own
    )
    assert build.main(["tiny-live", "--adapter", str(folder)]) == 2
    assert "tiny-live has one already: name its base, tiny" in capfd.readouterr().err
