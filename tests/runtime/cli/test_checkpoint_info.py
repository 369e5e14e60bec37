"""vicort-info MODEL: what an engine set of a checkpoint would be."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vicort.export import build, build_set, build_space
from vicort.export.build_space import NumberFormat, weight_bytes_of
from vicort.export.checkpoint import TINY, resolve
from vicort.export.checkpoint_description import BACKENDS, COMPRESSED, describe
from vicort.export.qwen2_5_vl.checkpoint_quantisation import read_quantisation
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.parameter_counts import (
    compressed_bytes,
    float_bytes,
    parameter_counts,
)
from vicort.export.qwen2_5_vl.weights import load_models
from vicort.export.random_checkpoint import PUBLISHED, write_companions
from vicort.runtime.cli import checkpoint_info as module
from vicort.runtime.cli.checkpoint_info import checkpoint_info, checkpoint_lines
from vicort.runtime.cli.info import info, main
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.manifest import ModelSpec


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(resolve(TINY), tmp_path / "mine")


def changed(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_counts_the_parameters_that_the_model_has(checkpoint):
    vision, language, _, _ = load_models(checkpoint, 308, 308)
    counts = describe(checkpoint).parameters
    assert counts == {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in (("vision", vision), ("language", language))
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [None, 96])  # 96: no groups of 128 inputs
@pytest.mark.parametrize("intermediate", [256, 180])  # of the vision encoder; 180 is filled up
def test_sizes_with_integer_weights_are_those_that_a_build_checks(width, tied, intermediate):
    config = read_configuration(resolve(TINY))
    language = replace(config.language, tied=tied, width=width or config.language.width)
    vision = replace(config.vision, intermediate=intermediate)
    config = replace(config, language=language, vision=vision)
    counts = parameter_counts(config)
    for embedding, weights in itertools.product((4, 2), COMPRESSED):
        numbers = NumberFormat("fp32", weights)
        checked = weight_bytes_of(config, numbers, False, embedding)
        assert compressed_bytes(config, weights, embedding) == checked
    for embedding, plans in itertools.product((4, 2), (False, True)):
        checked = weight_bytes_of(config, NumberFormat("fp32"), plans, embedding)
        assert float_bytes(config, 4, plans, embedding) == checked
    floats = weight_bytes_of(config, NumberFormat("fp32"), plans=False)
    filled = (vision.padded_intermediate - intermediate) * (3 * vision.width + 2) * vision.depth
    assert 4 * (sum(counts.values()) + filled) == floats


def test_a_tied_head_that_is_stored_is_no_parameter_of_its_own(checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    counts = describe(checkpoint).parameters
    (embedding,) = (each for name, each in weights.items() if "embed_tokens" in name)
    save_file(weights | {"lm_head.weight": embedding}, path)
    assert describe(checkpoint).parameters == counts


def test_a_head_of_other_values_counts_though_config_json_ties_it(checkpoint, monkeypatch):
    tied = describe(checkpoint)
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    (embedding,) = (each for name, each in weights.items() if "embed_tokens" in name)
    save_file(weights | {"lm_head.weight": embedding + 1}, path)
    own = describe(checkpoint)
    language = load_models(checkpoint, 308, 308)[1]
    assert own.parameters["language"] == sum(each.numel() for each in language.parameters())
    assert own.parameters["language"] - tied.parameters["language"] == embedding.size
    # a set stores the embedding of an untied head as the checkpoint does
    assert own.set_bytes["fp32"] - tied.set_bytes["fp32"] == embedding.itemsize * embedding.size
    # the automatic choice goes by the same bytes
    monkeypatch.setattr(build_space, "host_memory", lambda _: 3 * own.set_bytes["fp32"] - 3)
    monkeypatch.setattr(build_space, "computes_in_float32", lambda *_: True)
    options = build._parse([str(checkpoint)])
    source = build_set.ModelSource("m", checkpoint, None)
    assert build_set._with_numbers(options, source, print).weights == "int8"


def test_a_published_shape_without_its_weights(tmp_path):
    """The sizes that the documents give for the 3B model."""
    shape = PUBLISHED["3b"]
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shape.config))
    model.tie_weights()
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        entry = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end]}
        header[name] = entry
    text = json.dumps(header).encode()
    folder = tmp_path / "Qwen2.5-VL-3B-Instruct"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole: no data is written
    (folder / "config.json").write_text(json.dumps(shape.config | {"model_type": "qwen2_5_vl"}))
    write_companions(folder, 308)
    found = checkpoint_info(folder)
    assert sum(found.parameters.values()) == shape.parameters == 3_754_622_976
    assert found.stored == {"BF16": 2 * shape.parameters}
    assert (found.frame, found.unit_tokens) == (None, 121)
    bf16 = found.precisions["bf16"]
    filled = (3456 - 3420) * (3 * 1280 + 2) * 32  # in the vision encoder's MLPs
    assert bf16.set_bytes == 2 * (shape.parameters + filled)
    assert bf16.plan_bytes == bf16.set_bytes + 2 * 151_936 * 2048  # the embedding beside the head
    assert round(bf16.bytes_a_token, -3) == 37_000
    assert bf16.seconds_a_gb / 60 == pytest.approx(3.5, abs=0.05)
    assert found.precisions["fp32"].set_bytes == 2 * bf16.set_bytes


def test_the_set_that_is_built_has_these_sizes(tiny_engines):
    would_be, built = checkpoint_info(resolve(TINY)).precisions["fp32"], info(tiny_engines, ())
    weights = sum(
        size for name, size in built.bytes_on_disk.items() if name.endswith((".bin", ".onnx"))
    )
    assert would_be.set_bytes <= weights <= would_be.set_bytes + 1_000_000
    assert would_be.bytes_a_token == built.bytes_a_token


def test_the_model_is_what_a_build_would_make_of_it(checkpoint):
    options = build._parse([str(checkpoint)])
    draft = build_set._drafts(options, build_set._source(options), None, print)[0]
    assert ModelSpec.model_validate(describe(checkpoint).model) == draft.manifest.model


@pytest.mark.parametrize("precision", BACKENDS)
def test_backends_are_those_that_a_build_takes(precision):
    taken = set()
    for backend in ("openvino", "onnxruntime", "tensorrt"):
        try:
            taken.update(build_set.candidates(backend, precision))
        except ConfigError:
            continue
    assert taken == set(BACKENDS[precision])


def test_its_text_and_json_say_the_same(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(module, "has_nvidia_driver", lambda: False)
    assert main([str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main([str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert lines[:5] == [
        str(checkpoint),
        "  model       Qwen2.5-VL, 2.63 million parameters (vision 1.14 million, language 1.49 "
        "million)",
        "  weights     BF16 5.3 MB",
        "  frames      up to 94864 pixels in the shape of the source, 392x224 at 16:9, 2 a second, "
        "chunks of 16",
        "  tokens      up to 121 for two frames, 121 a second, before dropping",
    ]
    fp32 = found["precisions"]["fp32"]
    assert f"{fp32['bytes_a_token']:,} bytes a token" in lines[7]
    assert lines[8].strip() == "runs here with openvino and onnxruntime"
    assert lines[9].strip() == "tensorrt: there is no NVIDIA driver"
    assert fp32["build_command"] == f"vicort-build {checkpoint} --backend openvino --precision fp32"
    assert f"`{fp32['build_command']}` takes about 1.0 GB of memory" in lines[10]
    for name, line in zip(("int8", "int4"), lines[-3:-1], strict=True):
        compressed = found["compressed"][name]
        assert compressed["build_command"] == f"{fp32['build_command']} --weights {name}"
        size = f"{compressed['set_bytes'] / 1e6:.1f} MB"
        assert line == (f"  {name:11} engine set of {size}: `{compressed['build_command']}`")
    assert lines[-1] == f"  rule        {found['rule']}"


def test_a_build_command_is_one_that_the_shell_takes(checkpoint):
    folder = checkpoint.rename(checkpoint.with_name("my model"))
    command = checkpoint_info(folder).precisions["fp32"].build_command
    assert command == f"vicort-build '{folder}' --backend openvino --precision fp32"


def test_what_does_not_fit_here_is_said(checkpoint, monkeypatch):
    monkeypatch.setattr(module, "host_memory", lambda: 1_000_000_000)
    found = checkpoint_info(checkpoint)
    assert found.precisions["fp32"].runs["openvino"] == (
        "weights and a margin of 1.5 GB are 1.5 GB, this machine has 1.0 GB"
    )
    assert any("runs on no backend here" in line for line in checkpoint_lines(found))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert (
        "openvino is not installed" in checkpoint_info(checkpoint).precisions["fp32"].runs.values()
    )


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
GPTQ = {"bits": 8, "group_size": 64, "desc_act": True}


@pytest.mark.parametrize(
    ("changes", "words", "taken"),
    [
        ({"quantization_config": AWQ}, "AWQ, 4 bits, groups of 128", True),
        ({"text_config": {"quantization_config": AWQ}}, "AWQ, 4 bits, groups of 128", True),
        ({"older": GPTQ}, "GPTQ, 8 bits, groups of 64 in act-order", True),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes", False),
        ({"quantization_config": {"quant_method": "\x1b[31m" * 50}}, None, False),
        ({"quantization_config": {}}, "an unknown method", False),
        ({"quantization_config": "gptq"}, "an unknown method", False),
        ({"older": GPTQ | {"bits": 3}}, "gptq", False),
    ],
)
def test_a_quantised_checkpoint_is_named_as_a_build_names_it(checkpoint, changes, words, taken):
    if "older" in changes:
        (checkpoint / "quantize_config.json").write_text(json.dumps(changes["older"]))
    elif "text_config" in changes:
        text = json.loads((checkpoint / "config.json").read_text())["text_config"]
        changed(checkpoint, text_config=text | changes["text_config"])
    else:
        changed(checkpoint, **changes)
    found = describe(checkpoint)
    assert found.quantization == (words or found.quantization)
    assert (found.quantization + found.refused).isprintable()
    if taken:
        assert (str(read_quantisation(checkpoint)), found.refused) == (words, "")
    else:
        with pytest.raises(EngineError) as caught:
            read_quantisation(checkpoint)
        assert str(caught.value) == found.refused
    whole = describe(resolve(TINY))
    assert found.parameters == whole.parameters
    assert found.set_bytes == (whole.set_bytes if taken else {})
    assert found.compressed_bytes == ({"int8": None, "int4": None} if taken else {})


def test_the_text_of_a_quantised_checkpoint(checkpoint, capsys):
    changed(checkpoint, quantization_config=AWQ)
    assert main([str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "  weights     quantised with AWQ, 4 bits, groups of 128: BF16 5.3 MB\n" in out
    assert "  build       " not in out
    assert "  fp32        engine set of 10.5 MB, with TensorRT " in out
    assert "runs here with openvino and onnxruntime\n" in out
    command = f"`vicort-build {checkpoint} --backend openvino --precision fp32"
    assert f"{command}` takes about " in out
    assert (
        "  int4        engine set with the checkpoint's own integers where it has them: "
        f"{command} --weights int4`\n" in out
    )
    changed(checkpoint, quantization_config={})
    assert main([str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "  build       " in out
    assert "engine set of" not in out
    assert "vicort-build" not in out


def test_a_checkpoint_that_cannot_be_built_is_said(checkpoint, monkeypatch):
    (checkpoint / "tokenizer.json").unlink()
    assert checkpoint_info(checkpoint).refused.startswith("it has no tokenizer.json")
    shutil.copy(resolve(TINY) / "tokenizer.json", checkpoint)
    assert checkpoint_info(checkpoint).refused == ""

    there = module.metadata.distribution

    def missing(name):
        if name == "torch":
            raise module.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(module.metadata, "distribution", missing)
    refused = checkpoint_info(checkpoint).refused
    assert refused.startswith("building needs the export tools: run `pip install ")
    assert "torch==" in refused


def test_another_family_and_damage_are_one_line(checkpoint, capsys):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main([str(checkpoint)]) == 2
    assert capsys.readouterr().err == (
        f"vicort-info: {weights} is damaged (10 bytes are missing at its end): download the "
        "checkpoint again\n"
    )
    changed(checkpoint, model_type="llava")
    assert main([str(checkpoint)]) == 2
    err = capsys.readouterr().err
    assert "'llava' model, only 'qwen2_5_vl' is supported" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_configuration_that_is_nested_too_deeply_is_said(checkpoint, name):
    (checkpoint / name).write_text("[" * 100_000)
    with pytest.raises(EngineError, match=f"{name} is not JSON") as caught:
        describe(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key"), [("vision_config", "depth"), ("text_config", "num_attention_heads")]
)
@pytest.mark.parametrize("value", ["x", -1, 1.5, True])
def test_a_size_that_is_no_number_is_said(checkpoint, section, key, value):
    part = json.loads((checkpoint / "config.json").read_text())[section]
    changed(checkpoint, **{section: part | {key: value}})
    with pytest.raises(EngineError, match="allowed is a positive whole number"):
        describe(checkpoint)


def test_nothing_is_downloaded(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["Qwen/Qwen2.5-VL-3B-Instruct"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "vicort-info downloads nothing" in err
    assert "`vicort-build Qwen/Qwen2.5-VL-3B-Instruct`" in err
    assert main([str(tmp_path)]) == 2
    assert "has neither manifest.json nor config.json" in capsys.readouterr().err


@pytest.mark.parametrize("quantised", [False, True])
def test_it_needs_no_torch(checkpoint, quantised):
    if quantised:
        changed(checkpoint, quantization_config=AWQ)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'safetensors', "
        "'onnx', 'huggingface_hub'))); from vicort.export.checkpoint_description import main; "
        f"sys.exit(main([{str(checkpoint)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        math.prod(json.loads(done.stdout)["model"][key] for key in ("layers", "width")) == 6 * 128
    )
    assert json.loads(done.stdout)["quantization"].startswith("AWQ" if quantised else "")
