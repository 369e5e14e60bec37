"""quantization_config says how a checkpoint is quantised: what vicort reads, and what it refuses
before anything is exported."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engine_sets import OPTIONS, TOKENIZER, graph_of
from support.plain_packing import drawn, linear_keys, write_quantised
from support.reference_model import write_random_checkpoint
from support.sizes import slow

from vicort.export import build, engine_set_writer
from vicort.export.checkpoint import TINY, resolve
from vicort.export.qwen2_5_vl.adapter import Adapter, LowRank
from vicort.export.qwen2_5_vl.checkpoint_quantisation import read_quantisation
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.weights import load_language, load_vision
from vicort.runtime.errors import EngineError

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": False}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def compressed(form: str, **weights: object) -> dict:
    arguments = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    arguments |= {"symmetric": True, "dynamic": False} | weights
    group = {"targets": ["Linear"], "weights": arguments}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["re:visual.*"],
    }


def written(config: object, folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (AWQ, "AWQ, 4 bits, groups of 128"),
        (AWQ | {"version": "GEMM", "group_size": 64}, "AWQ, 4 bits, groups of 64"),
        (GPTQ, "GPTQ, 4 bits, groups of 128 in act-order"),
        (
            GPTQ | {"bits": 8, "desc_act": False, "group_size": -1},
            "GPTQ, 8 bits, one scale per row",
        ),
        (
            GPTQ | {"desc_act": False, "dynamic": {"-:.*visual.*": {}}},
            "GPTQ, 4 bits, groups of 128",
        ),
        (compressed("pack-quantized"), "compressed-tensors, 4 bits, groups of 128"),
        (
            compressed("pack-quantized", actorder="weight"),
            "compressed-tensors, 4 bits, groups of 128",
        ),
        (
            compressed("int-quantized", num_bits=8, strategy="channel", group_size=None),
            "compressed-tensors, 8 bits, one scale per row",
        ),
        (
            compressed("naive-quantized", num_bits=8, strategy="tensor", group_size=None),
            "compressed-tensors, 8 bits, one scale",
        ),
        (
            compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
            "compressed-tensors, 8 bits (float8 e4m3), one scale per row",
        ),
        (
            compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
            "compressed-tensors, 8 bits (float8 e4m3), one scale",
        ),
        (
            compressed(
                "float-quantized",
                num_bits=8,
                type="float",
                strategy="block",
                block_structure=[128, 128],
            ),
            "compressed-tensors, 8 bits (float8 e4m3), blocks of 128x128",
        ),
        (FP8, "FP8, 8 bits (float8 e4m3), blocks of 128x128"),
    ],
)
def test_what_is_read(config, said, tmp_path):
    assert str(read_quantisation(written(config, tmp_path))) == said


def test_a_checkpoint_that_is_not_quantised(tmp_path):
    assert read_quantisation(resolve(TINY)) is None
    assert read_quantisation(written(None, tmp_path)) is None


def test_where_the_configuration_stands(tmp_path):
    """config.json comes first; auto-gptq's own file has no quant_method in its older versions."""
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"quantization_config": AWQ}}))
    assert str(read_quantisation(tmp_path)) == "AWQ, 4 bits, groups of 128"
    own = {key: value for key, value in GPTQ.items() if key != "quant_method"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(own))
    assert str(read_quantisation(tmp_path)) == "AWQ, 4 bits, groups of 128"
    (tmp_path / "config.json").write_text("{}")
    assert str(read_quantisation(tmp_path)) == "GPTQ, 4 bits, groups of 128 in act-order"


def test_a_file_that_is_nested_too_deeply_is_said(tmp_path):
    for name in ("quantize_config.json", "config.json"):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(EngineError, match=f"{name} is not JSON") as caught:
            read_quantisation(tmp_path)
        assert "\n" not in str(caught.value)


METHODS = "allowed is awq or gptq or compressed-tensors or fp8"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, f"'bitsandbytes', {METHODS}"),
        ({"quant_method": "hqq"}, f"quant_method of the quantisation is 'hqq', {METHODS}"),
        ({"quant_method": "gguf"}, f"quant_method of the quantisation is 'gguf', {METHODS}"),
        ({"quant_method": ["awq"]}, METHODS),
        ({"bits": 4}, f"quant_method of the quantisation is None, {METHODS}"),
        ([1], "quantization_config is of type list, allowed is an object"),
        ("awq", "quantization_config is of type str, allowed is an object"),
        (AWQ | {"version": "gemv"}, "version of the quantisation is 'gemv', allowed is gemm"),
        (AWQ | {"bits": 3}, "bits of the quantisation is 3, allowed is 4"),
        (AWQ | {"bits": True}, "bits of the quantisation is True, allowed is 4"),
        (AWQ | {"zero_point": False}, "zero_point of the quantisation is False"),
        (AWQ | {"group_size": 0}, "group_size of the quantisation is 0, allowed is -1 or a number"),
        (AWQ | {"group_size": None}, "group_size of the quantisation is None"),
        (GPTQ | {"bits": 3}, "bits of the quantisation is 3, allowed is 4 or 8"),
        (GPTQ | {"desc_act": "yes"}, "desc_act of the quantisation is 'yes', allowed is true or"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format of the quantisation is 'mar"),
        (GPTQ | {"format": "bitblas"}, "'bitblas', allowed is gptq or gptq_v2"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format of the quantisation is True"),
        (GPTQ | {"pack_dtype": "int64"}, "pack_dtype of the quantisation is 'int64'"),
        (GPTQ | {"dynamic": {"+:.*q_proj": {"bits": 8}}}, "dynamic of the quantisation is"),
        (FP8 | {"weight_block_size": None}, "weight_block_size of the quantisation is None"),
        (FP8 | {"weight_block_size": [128]}, "is [128], allowed is two positive numbers"),
        (FP8 | {"scale_fmt": "ue8m0"}, "scale_fmt of the quantisation is 'ue8m0'"),
        (compressed("marlin-24"), "'marlin-24', allowed is pack-quantized or int-quantized or"),
        (compressed("nvfp4-pack-quantized", type="float"), "format of the quantisation is 'nvfp4"),
        (compressed("pack-quantized", type="float"), "type of the quantisation is 'float'"),
        (compressed("float-quantized", type="float"), "num_bits of the quantisation is 4"),
        (compressed("pack-quantized", num_bits=3), "num_bits of the quantisation is 3"),
        (compressed("pack-quantized", strategy="tensor_group"), "strategy of the quantisation"),
        (compressed("pack-quantized", actorder="group"), "actorder of the quantisation is 'group'"),
        (compressed("pack-quantized", actorder=True), "is True, allowed is weight or none"),
        (compressed("pack-quantized") | {"config_groups": {}}, "config_groups of the quant"),
        (compressed("pack-quantized") | {"config_groups": {"W4A16": ["Linear"]}}, "config_groups"),
        (compressed("pack-quantized") | {"transform_config": {"R1": {}}}, "transform_config of"),
        (
            compressed("pack-quantized") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config of the quantisation",
        ),
    ],
)
def test_what_is_refused(config, message, tmp_path):
    with pytest.raises(EngineError) as caught:
        read_quantisation(written(config, tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_with_different_weights_are_refused(tmp_path):
    config = compressed("pack-quantized")
    config["config_groups"] |= compressed("", num_bits=8)["config_groups"] | {
        "group_1": {"weights": {"num_bits": 8}}
    }
    with pytest.raises(EngineError, match="allowed is groups with the same weights"):
        read_quantisation(written(config, tmp_path))


@pytest.fixture(scope="module", params=["awq", "gptq"])
def packed_and_plain(request, tmp_path_factory) -> tuple[Path, Path]:
    """The embedded model's checkpoint with random quantised layers, packed and dequantised."""
    folder = tmp_path_factory.mktemp(request.param)
    write_quantised(resolve(TINY), folder / "packed", folder / "plain", request.param)
    return folder / "packed", folder / "plain"


def parameters(folder: Path, **more: object) -> dict[str, torch.Tensor]:
    language = load_language(folder, read_configuration(folder), **more)
    return dict(language.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_equal_those_of_the_dequantised_checkpoint(packed_and_plain, dtype):
    ours, plain = (parameters(folder, dtype=dtype) for folder in packed_and_plain)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert {weight.dtype for weight in ours.values()} == {dtype}
    base = parameters(resolve(TINY), dtype=dtype)
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    layers = read_configuration(resolve(TINY)).language.layers
    assert len(changed) == layers * 7  # linear ones in each


def test_what_was_not_converted_stays(packed_and_plain):
    config = read_configuration(packed_and_plain[0])
    ours, base = (
        dict(load_vision(folder, config, 56, 56).named_parameters())
        for folder in (packed_and_plain[0], resolve(TINY))
    )
    assert all(torch.equal(ours[name], base[name]) for name in base)


def test_the_integers_of_each_quantised_parameter_can_be_had(packed_and_plain):
    packed: dict[str, PackedWeight] = {}
    weights = parameters(packed_and_plain[0], packed=packed)
    stored = load_file(packed_and_plain[1] / "model.safetensors")
    assert packed.keys() == {
        key.replace("model.language_model.", "").removeprefix("model.")
        for key in linear_keys(stored)
    }
    for name, each in packed.items():
        assert torch.equal(each.dequantised(), weights[name])


def test_an_adapter_is_added_to_the_dequantised_weight(packed_and_plain):
    """Its layers are no integers any more."""
    name = "layers.1.mlp.down_proj.weight"
    plain = parameters(packed_and_plain[1])
    outputs, inputs = plain[name].shape
    low_rank = LowRank(torch.randn(2, inputs), torch.randn(outputs, 2), scale=0.5)
    adapter = Adapter(Path("adapter"), {f"model.language_model.{name}": low_rank})
    packed: dict[str, PackedWeight] = {}
    ours = parameters(packed_and_plain[0], adapter=adapter, packed=packed)
    assert torch.equal(ours[name], plain[name] + 0.5 * low_rank.up @ low_rank.down)
    assert name not in packed
    assert "layers.0.mlp.down_proj.weight" in packed


def edit(folder: Path, target: Path, change) -> Path:
    """A copy with other tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def quantised_key(tensors: dict[str, torch.Tensor]) -> str:
    return next(key for key in tensors if key.endswith("0.mlp.up_proj.qweight"))


def test_tensors_of_a_layer_in_several_files(packed_and_plain, tmp_path):
    shutil.copytree(packed_and_plain[0], tmp_path / "shards")
    tensors = load_file(tmp_path / "shards" / "model.safetensors")
    (tmp_path / "shards" / "model.safetensors").unlink()
    names = sorted(tensors, key=lambda key: (key.rpartition(".")[2], key))
    files = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file(
            {key: tensors[key] for key in part}, tmp_path / "shards" / f"{number}.safetensors"
        )
        files |= dict.fromkeys(part, f"{number}.safetensors")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    ours, plain = parameters(tmp_path / "shards"), parameters(packed_and_plain[1])
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_scales_of_activations_and_biases_of_zeros_are_passed_over(packed_and_plain, tmp_path):
    def change(tensors):
        layer = quantised_key(tensors).removesuffix("qweight")
        tensors |= {f"{layer}input_scale": torch.ones(1), f"{layer}bias": torch.zeros(512)}

    ours = parameters(edit(packed_and_plain[0], tmp_path / "copy", change))
    assert ours.keys() == parameters(packed_and_plain[1]).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({quantised_key(t).replace("qweight", "bias"): torch.ones(512)}),
            "mlp.up_proj.bias' that does not fit config.json",
        ),
        (
            lambda t: t.update({"model.other.qweight": torch.ones(1, dtype=torch.int32)}),
            "'model.other.qweight' that does not fit config.json",
        ),
        (lambda t: t.pop(quantised_key(t)), "scales but no qweight"),
        (
            lambda t: t.update({quantised_key(t): t[quantised_key(t)][:8].clone()}),
            "qweight' has shape [8, ",
        ),
        (
            lambda t: [t.pop(key) for key in list(t) if "layers.0.mlp.up_proj." in key],
            "has no weight 'layers.0.mlp.up_proj.weight' (1 missing)",
        ),
    ],
)
def test_what_does_not_fit_is_named(packed_and_plain, change, message, tmp_path):
    with pytest.raises(EngineError) as caught:
        parameters(edit(packed_and_plain[0], tmp_path / "copy", change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_weights_without_a_configuration(packed_and_plain, tmp_path):
    shutil.copytree(packed_and_plain[0], tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="neither a quantization_config in"):
        parameters(tmp_path / "copy")


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_output_head_is_a_head_of_its_own(tied, tmp_path):
    """GPTQ's option lm_head; transformers too takes a head that is stored to be separate."""
    write_random_checkpoint(tmp_path, "tiny", seed=5, tied=tied)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    head = drawn(96, 128, 32, seed=1)
    tensors |= {f"lm_head.{leaf}": tensor for leaf, tensor in head.gptq().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": GPTQ | {"group_size": 32}}
    path.write_text(json.dumps(config))
    language = load_language(tmp_path, read_configuration(tmp_path))
    assert torch.equal(language.lm_head.weight, head.dequantised())
    assert not torch.equal(language.lm_head.weight, language.embed_tokens.weight)


@pytest.mark.parametrize("packed_and_plain", ["awq", *slow("gptq")], indirect=True)
def test_the_set_equals_that_of_the_dequantised_checkpoint(
    packed_and_plain, build_tiny, tmp_path, capfd
):
    """Without tracing: the graphs are those of the embedded model's set."""
    torch.set_num_threads(1)
    sets = []
    with mock.patch.object(engine_set_writer, "export_graph", partial(graph_of, build_tiny())):
        for checkpoint in packed_and_plain:
            sets.append(tmp_path / checkpoint.name)
            command = [str(checkpoint), "--backend", "onnxruntime", "--out", str(sets[-1])]
            assert build.main(command) == 0
    said = capfd.readouterr().err
    assert said.count("reading a quantised checkpoint: ") == 1
    assert "4 bits, groups of 32" in said
    assert_sets_equal(*sets)
    assert (sets[0] / "llm.bin").read_bytes() != (build_tiny() / "llm.bin").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_the_set_equals_that_of_the_dequantised_checkpoint_when_both_are_traced(method, tmp_path):
    torch.set_num_threads(1)
    write_random_checkpoint(tmp_path / "base", "tiny", seed=3)
    shutil.copy(TOKENIZER, tmp_path / "base")
    write_quantised(tmp_path / "base", tmp_path / "packed", tmp_path / "plain", method)
    sets = []
    for name in ("packed", "plain"):
        sets.append(tmp_path / f"{name}-set")
        command = [str(tmp_path / name), "--backend", "onnxruntime", "--out", str(sets[-1])]
        assert build.main([*command, *OPTIONS]) == 0
    assert_sets_equal(*sets)


def assert_sets_equal(one: Path, other: Path) -> None:
    """In every file but the checkpoint's own configuration and the manifest."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()} > {"llm.bin", "vision.bin"}
    for name in names - {"config.json", "manifest.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq", "gguf", "aqlm"])
def test_the_build_refuses_at_once(method, tmp_path, monkeypatch, capfd):
    shutil.copytree(resolve(TINY), tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}}
    path.write_text(json.dumps(config))
    writer = mock.Mock()
    monkeypatch.setattr("vicort.export.build_set.write_engine_set", writer)
    out = tmp_path / "set"
    assert build.main([str(tmp_path / "checkpoint"), "--out", str(out)]) != 0
    said = capfd.readouterr().err
    assert f"quant_method of the quantisation is '{method}', {METHODS}" in said
    assert said.count("\n") == 1
    assert not writer.called
    assert not out.exists()


def float8_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """The embedded model's, with half of its linear layers as 8-bit floats. Returns their weights,
    by their keys."""
    shutil.copytree(resolve(TINY), folder)
    tensors, expected = load_file(folder / "model.safetensors"), {}
    for key in list(linear_keys(tensors))[::2]:
        scale = tensors[key].float().abs().amax(1, keepdim=True) / 448
        stored = (tensors[key].float() / scale).to(torch.float8_e4m3fn)
        tensors |= {key: stored, f"{key}_scale": scale}
        expected[key] = stored.float() * scale
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = compressed(
        "float-quantized", num_bits=8, type="float", strategy="channel"
    )
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def test_a_checkpoint_of_8_bit_floats(tmp_path):
    """A layer that was left as it is has a tensor of the same name."""
    expected = float8_checkpoint(tmp_path / "checkpoint")
    packed: dict[str, PackedWeight] = {}
    ours = parameters(tmp_path / "checkpoint", packed=packed)
    base = parameters(resolve(TINY))
    named = {key[key.index("layers.") :]: weight for key, weight in expected.items()}
    layers = read_configuration(resolve(TINY)).language.layers
    assert len(named) == 7 * layers // 2
    for name, weight in ours.items():
        assert torch.equal(weight, named.get(name, base[name])), name
    assert not packed


def test_8_bit_floats_without_their_scale(tmp_path):
    key = next(iter(float8_checkpoint(tmp_path / "checkpoint")))
    folder = edit(tmp_path / "checkpoint", tmp_path / "copy", lambda t: t.pop(f"{key}_scale"))
    with pytest.raises(EngineError, match="has weight but no weight_scale: download"):
        parameters(folder)
