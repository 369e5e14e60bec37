"""TensorRT's products of int8 and fp8: the same ONNX run on the CPU by onnxruntime beside PyTorch,
and what is in plans. Plans are built, not run."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.engine_sets import TOKENIZER
from support.reference_model import VIDEO_TOKEN, write_random_checkpoint
from torch import Tensor, nn

from vicort.benchmarks.studies import eight_bit_answers
from vicort.export import build, engine_set_writer, tensorrt_plans
from vicort.export.activation_statistics import InputStatistics
from vicort.export.calibration_clip import read_clip
from vicort.export.eight_bit_calibration import calibrate_inputs, search_inputs
from vicort.export.eight_bit_inputs import rounded
from vicort.export.engine_set_writer import PlanOptions, _exports, draft_manifest
from vicort.export.graphs import expand, export_graph, write_graph, write_nodes
from vicort.export.product_choice import ProductChoice, read_choices, write_choices
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import OutputHead
from vicort.export.qwen2_5_vl.layers import Linear
from vicort.export.qwen2_5_vl.weights import load_dynamic_vision
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.tensorrt_plans import PlanJob
from vicort.export.verify import _language, as_engine_multiplies, frame_inputs, language_inputs
from vicort.export.weight_compression import Scheme, compress, quantise_fp8
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.onnxruntime import OnnxRuntimeEngine
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.manifest import Dimension, GraphSpec, Manifest, TensorSpec, read_manifest

KINDS = ("int8", "fp8")
CLIP = "testsrc:seconds=3"
WIDTH = 48


class Products(nn.Module):
    """Products of two and of three axes, with and without a bias, two of them of one input."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(2)
        self.biased = Linear(WIDTH, 24)
        self.plain = Linear(24, WIDTH, bias=False)
        self.again = Linear(24, WIDTH)
        self.lm_head = Linear(WIDTH, 7, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.biased(x.reshape(-1, 2, WIDTH))
        return self.lm_head((self.plain(inner) + self.again(inner)).reshape(-1, WIDTH))


def products_graph(dtype: str) -> GraphSpec:
    return GraphSpec(
        file="products.onnx",
        inputs=(TensorSpec(name="x", dtype=dtype, shape=("2*C", WIDTH)),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=("2*C", 7)),),
        dimensions={"2*C": Dimension(min=2, opt=16, max=16), "C": Dimension(min=1, opt=8, max=8)},
    )


X = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))


def seen_inputs() -> dict[str, ProductChoice]:
    """What the products of `Products` get for X."""
    model, seen = Products().eval(), {}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update(
                    {f"{name}.weight": ProductChoice(largest=inputs[0].abs().max())}
                )
            )
    with torch.no_grad():
        model(X)
    return seen


def scheme_of(kind: str, precision: str = "fp32") -> Scheme:
    found = Scheme.chosen(precision, kind, True, "llm")
    assert found
    assert found.both == kind
    return found


@functools.cache
def traced(precision: str) -> tuple[onnx_ir.Model, GraphSpec]:
    """`Products` with no integers yet."""
    graph = products_graph({"fp32": "float32", "bf16": "bfloat16"}[precision])
    model = Products().eval().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    return export_graph(model, graph, keep_weights=True)[0], graph


def written(folder: Path, kind: str, precision: str) -> tuple[Path, GraphSpec]:
    model, graph = traced(precision)
    exported = model.clone()
    scheme = replace(scheme_of(kind, precision), choices=seen_inputs())
    assert compress(exported, scheme) == {kind: 4}
    list(write_graph(exported, folder / "products.onnx"))
    onnx.checker.check_model(folder / "products.onnx")
    return folder / "products.onnx", graph


def by_onnxruntime(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """As the graph says. onnxruntime's own int8 products saturate on CPUs without VNNI."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options).run(None, inputs)


def off_by(found: np.ndarray, wanted: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float(np.abs(found - wanted.numpy()).max() / np.abs(wanted.numpy()).max())


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))


# The rule


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 10), st.sampled_from(KINDS))
def test_inputs_become_the_nearest_numbers_of_the_type(seed, scale, kind):
    x = np.random.default_rng(seed).standard_normal(300, np.float32) * 100
    steps = x / np.float32(scale)
    plain = (
        np.clip(np.rint(steps), -128, 127)
        if kind == "int8"
        else np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    )
    found = rounded(torch.from_numpy(x), scale, kind)
    assert np.array_equal(found.numpy(), plain * np.float32(scale))


def test_fp8_weights_have_a_scale_for_each_output():
    weight = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    weight = weight * torch.tensor([1e-4, 1.0, 30.0, 1e3, 0.0])
    found = quantise_fp8(weight)
    assert found.values.dtype == torch.float8_e4m3fn
    assert torch.allclose(found.values.float().abs().amax(0)[:4], torch.tensor(448.0))
    error = (found.dequantised() - weight).abs()
    # 3 bits of mantissa, and the least step of a column
    assert (error <= weight.abs() / 16 + weight.abs().amax(0) / 448 / 2**9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_says_what_pytorch_computes_with_the_same_numbers(kind, tmp_path):
    path, _ = written(tmp_path, kind, "fp32")
    (found,) = by_onnxruntime(path, {"x": X.numpy()})
    model, exact = Products().eval(), Products().eval()
    as_engine_multiplies(model, replace(scheme_of(kind), choices=seen_inputs()))
    with torch.no_grad():
        wanted, before = model(X), exact(X)
    assert off_by(found, wanted) < 1e-5
    assert off_by(found, before) > {"int8": 3e-3, "fp8": 1e-2}[kind]  # it is rounded
    assert off_by(found, before) < {"int8": 4e-2, "fp8": 1.5e-1}[kind]


def test_the_study_of_answers_lets_onnxruntime_multiply_exactly(tmp_path):
    path, graph = written(tmp_path, "int8", "fp32")
    bounds = {"2*C": graph.dimensions["2*C"]}
    graph = graph.model_copy(update={"dimensions": bounds})
    model = Products().eval()
    as_engine_multiplies(model, replace(scheme_of("int8"), choices=seen_inputs()))
    bound = {"x": X.numpy(), "y": np.zeros((10, 7), np.float32)}
    with eight_bit_answers.products_as_written():
        OnnxRuntimeEngine(path, graph, threads=1).enqueue(bound, InlineStream("test"))
    with torch.no_grad():
        assert off_by(bound["y"], model(X)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_one_input_share_its_rounding(kind, tmp_path):
    path, _ = written(tmp_path, kind, "fp32")
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (nodes["QuantizeLinear"], nodes["DequantizeLinear"]) == (3, 3 + 4)


def test_an_input_that_no_clip_has_shown_is_an_error():
    exported = traced("fp32")[0].clone()
    with pytest.raises(EngineError, match=r"no inputs of the product with biased\.weight"):
        compress(exported, scheme_of("int8"))


# Smoothing


def outlier_statistics(count: int = 2000) -> tuple[InputStatistics, Tensor]:
    """Inputs with two channels of fifty times the others' size, as language models have."""
    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(3))
    x[:, [5, 40]] *= 50
    sample = x[:: count // 128]
    return InputStatistics(x.abs().amax(0), x.square().mean(0), sample), x


def test_smoothing_lets_int8_keep_small_channels_beside_large_ones():
    statistics, x = outlier_statistics()
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(4))
    matrix[[5, 40]] *= 0.05  # which a model that was trained with such channels has
    found = search_inputs("w", matrix, statistics, scheme_of("int8"), lambda factors: factors)
    plain, smooth = found.candidates["data-free"], found.candidates["smooth"]
    assert found.best is smooth
    assert smooth.error < plain.error / 3
    choice = smooth.choice
    assert choice.inputs is not None
    assert choice.largest == (x / choice.inputs).abs().max()
    # the product is the same before it is rounded
    assert torch.allclose((x / choice.inputs) @ choice.folded(matrix), x @ matrix, atol=1e-3)


# A whole model


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    write_one_layer(folder, "tiny", torch.float32)
    return folder


def write_one_layer(folder: Path, size: str, dtype: torch.dtype) -> None:
    """A random checkpoint of one layer each, which can be asked: the export's time grows with
    layers."""
    text = {"num_hidden_layers": 1}
    vision = {"depth": 1, "fullatt_block_indexes": [0]}
    write_random_checkpoint(folder, size, seed=3, dtype=dtype, text=text, vision=vision)
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        shutil.copy(TOKENIZER.parent / name, folder)
    config = json.loads((folder / "config.json").read_text())  # with that tokenizer's numbers
    config |= {"video_token_id": VIDEO_TOKEN["tiny"], "image_token_id": VIDEO_TOKEN["tiny"] - 1}
    (folder / "config.json").write_text(json.dumps(config))


def planned(checkpoint: Path, kind: str, precision: str) -> tuple[Manifest, PlanOptions]:
    spec = model_spec("m", read_configuration(checkpoint), load_recipe("m"))
    options = PlanOptions("tensorrt_rtx", plugin=False)
    clip = read_clip(CLIP, spec, checkpoint)
    return (
        draft_manifest(
            checkpoint, spec, "tensorrt", precision, "", options, weights=kind, clip=clip
        ),
        options,
    )


@pytest.mark.slow  # graphs of one product each do so in the default run
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_all_graphs_of_a_model_say_what_pytorch_computes(kind, small, tmp_path):
    """As TensorRT is given them, but in fp32, and with choices as a set keeps them."""
    manifest, _ = planned(small, kind, "fp32")
    clip, said = read_clip(CLIP, manifest.model, small), []
    write_choices(calibrate_inputs(clip, small, manifest, said.append), tmp_path)
    choices = read_choices(tmp_path)
    exported = dict(_exports(tmp_path, small, manifest, said.append, None, "tokens", choices))
    lines = [f"matrices of the {name} graph: {n} {kind}" for name, n in COUNTS.items()]
    assert set(lines) <= set(said)
    assert any(line.startswith("smoothed the inputs of") for line in said) == (kind == "int8")
    expand(exported["llm"])
    write_nodes(exported["llm"], tmp_path / "llm.onnx")
    random, float32 = np.random.default_rng(0), np.dtype(np.float32)
    language = _language(small, manifest, None, choices)
    vision = load_dynamic_vision(small, read_configuration(small))
    combine(vision)
    scheme = Scheme.of(manifest, "vision")
    assert scheme
    as_engine_multiplies(vision, replace(scheme, choices=choices))
    hidden = {"hidden": random.standard_normal((3, manifest.model.width), np.float32)}
    cases = {
        "llm": (language, language_inputs(manifest.model, float32, 9, 5, random)),
        "head": (OutputHead(language), hidden),
        "vision": (vision, frame_inputs(manifest.model, 1, random)),
    }
    for name, (model, inputs) in cases.items():
        graph = manifest.graphs[name]
        with torch.no_grad():
            wanted = model(*(torch.from_numpy(inputs[each.name]) for each in graph.inputs))
        found = by_onnxruntime(tmp_path / f"{name}.onnx", inputs)
        real = inputs["pos"][:, 0] >= 0 if name == "llm" else None
        pairs = zip(graph.outputs, found, wanted if name == "llm" else (wanted,), strict=True)
        for each, one, other in pairs:
            if each.name in ("k", "v"):
                one, other = one[:, real], other[:, real]
            off, size = np.abs(one - other.numpy()), rms(other.numpy())
            assert np.quantile(off, 0.25) < 1e-4 * size, (name, each.name)
            assert rms(off) < FLIPPED[kind] * size, (name, each.name)


# matrices of a model of one layer each
COUNTS = {"llm": 4, "head": 1, "vision": 7}
# An input that lies between two numbers may fall to the other one, a whole step off, and attention
# spreads it. A quarter of each output is the same to rounding of fp32.
FLIPPED = {"int8": 1.5e-2, "fp8": 3e-2}


# Plans


def listed_products(listing: str) -> Counter[tuple[str, str]]:
    """The types of the two inputs of each matrix product in TensorRT's listing of a plan."""
    found: Counter[tuple[str, str]] = Counter()
    for line in listing.splitlines():
        if "LayerType: gemm" in line:
            inputs, _, constants = line.partition("Constants: ")
            (one, *_), (other, *_) = (
                re.findall(r"Datatype: (\w+)", part)
                for part in (inputs, constants.partition("Outputs: ")[0])
            )
            found[one, other] += 1
    return found


def built(job: PlanJob, monkeypatch) -> Counter[tuple[str, str]]:
    """Build a plan in this process; returns its matrix products."""
    listings: list[str] = []
    monkeypatch.setattr(
        tensorrt_plans, "_check_listing", lambda job, listed, plugins: listings.extend(listed)
    )
    tensorrt_plans.build(job, lambda phase, done: None)
    (listing,) = listings
    return listed_products(listing)


TYPE_NAMES = {"int8": "Int8", "fp8": "FP8"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_products_of_a_plan_take_the_type_on_both_sides(kind, tmp_path, monkeypatch):
    """Built, not run."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path, graph = written(tmp_path, kind, "bf16")
    job = PlanJob(model=path, plan=tmp_path / "p.plan", graph=graph, flavour="tensorrt_rtx")
    name = TYPE_NAMES[kind]
    assert built(job, monkeypatch) == {(name, name): 3}  # the two of one input are joined


def test_tensorrt_for_rtx_refuses_fp8_where_the_check_of_targets_does(tmp_path):
    """The check says before the export what the builder would say after it."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path, graph = written(tmp_path, "fp8", "bf16")
    job = PlanJob(model=path, plan=tmp_path / "p.plan", graph=graph, flavour="tensorrt_rtx")
    for name in rtx.ComputeCapability.__members__:
        if not name.startswith("SM"):
            continue
        targets = (f"sm_{name.removeprefix('SM')}",)
        refused = pytest.raises(EngineError, match="HW-specific datatypes")
        with refused if name in ("SM75", "SM80", "SM86") else nullcontext():
            tensorrt_plans.build(job.model_copy(update={"targets": targets}), lambda *_: None)
        refused = pytest.raises(ConfigError, match=f"--target {targets[0]}: ")
        with refused if name in ("SM75", "SM80", "SM86") else nullcontext():
            tensorrt_plans.check_number_formats(targets, None, "fp8")


def test_what_a_target_does_not_multiply_is_refused():
    check = tensorrt_plans.check_number_formats
    check((), None, "fp8")
    check(("sm_80", "sm_120"), None, "int8")
    with pytest.raises(ConfigError, match=r"sm_86: .* does not multiply fp8 .* another --weights"):
        check(("sm_89", "sm_86"), None, "fp8")
    with pytest.raises(ConfigError, match=r"sm_75: .* multiply bf16 .* sm_80 or newer"):
        check(("sm_75",), None, None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("size", ["tiny", "3b-widths"])
def test_whole_sets_are_built(size, kind, tmp_path, monkeypatch, capfd):
    """Of the embedded model, and of one layer each at the widths of the 3B model. Built, not
    run."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = "tiny"
    if size != "tiny":
        model = str(tmp_path / "model")
        write_one_layer(Path(model), size, torch.bfloat16)
    listings: dict[str, Counter[tuple[str, str]]] = {}

    def build_here(job: PlanJob, progress):
        listed: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                tensorrt_plans, "_check_listing", lambda job, found, _: listed.extend(found)
            )
            plan = tensorrt_plans.build(job, progress)
        listings[job.plan.stem] = listed_products(listed[0])
        return plan

    monkeypatch.setattr(engine_set_writer, "build_plan", build_here)
    folder = tmp_path / "set"
    command = [model, "--backend", "tensorrt", "--weights", kind, "--calibration", CLIP]
    assert build.main([*command, "--no-plugin", "--out", str(folder)]) == 0, capfd.readouterr().err
    manifest = read_manifest(folder)
    assert (manifest.weights, manifest.precision) == (kind, "bf16")
    assert manifest.calibration
    if kind == "int4":
        assert manifest.graphs["llm"].layer_types["DEQUANTIZE"] == 4 * manifest.model.layers
        return
    name = TYPE_NAMES[kind]
    for graph in ("vision", "llm", "head"):
        rounded_inputs = manifest.graphs[graph].layer_types["QUANTIZE"]
        assert listings[graph][name, name] == rounded_inputs
