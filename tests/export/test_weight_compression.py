"""Integer weights: what is stored, what is multiplied with, and how far off that is."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.engine_sets import TOKENIZER, built_model, built_options
from support.plain_packing import write_quantised
from support.reference_model import write_random_checkpoint
from torch import Tensor, nn

from vicort.export import build
from vicort.export.checkpoint import resolve
from vicort.export.engine_set_writer import _exports, draft_manifest
from vicort.export.graphs import expand, export_graph, write_graph, write_nodes
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.layers import Linear
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.weights import load_language
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.tensorrt_plans import PlanJob, build_plan
from vicort.export.verify import _language, compare, language_inputs
from vicort.export.weight_compression import (
    GROUP,
    TYPES,
    Quantised,
    Scheme,
    compress,
    dequantise_parameters,
    quantise_int4,
    quantise_int8,
)
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.engine_run import output_arrays
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.engines.openvino import OpenVinoEngine, _properties
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import Dimension, GraphSpec, TensorSpec, read_manifest

FLOAT = TYPES["fp32"]
seeds = st.integers(0, 2**32 - 1)


def matrix(seed: int, rows: int, columns: int) -> Tensor:
    """Most weights small, some large, as in trained models."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=random) ** 3 * 0.02


def error(quantised: Quantised, weight: Tensor) -> Tensor:
    return (quantised.dequantised() - weight).abs()


@given(seeds, st.integers(1, 40), st.integers(1, 9))
def test_int8_is_off_by_half_a_step_at_most(seed, rows, columns):
    weight = matrix(seed, rows, columns)
    found = quantise_int8(weight)
    assert found.values.abs().max() <= 127
    assert (error(found, weight) <= weight.abs().amax(0) / 127 * 0.501 + 1e-12).all()


@given(seeds, st.integers(1, 3), st.integers(1, 9))
def test_int4_is_no_worse_than_the_plain_rule(seed, groups, columns):
    weight = matrix(seed, groups * GROUP, columns)
    found = quantise_int4(weight)
    assert found.values.min() >= -8
    assert found.values.max() <= 7
    grouped = weight.numpy().reshape(groups, GROUP, columns)
    # the plain rule: the weight of the largest magnitude becomes -8
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(1)[:, None], 1)
    scale = np.where(largest == 0, 1, largest / -8)
    plain = np.clip(np.round(grouped / scale), -8, 7) * scale
    wanted = ((plain - grouped) ** 2).sum(1)
    real = (error(found, weight).numpy().reshape(grouped.shape) ** 2).sum(1)
    assert (real <= wanted * 1.001 + 1e-12).all()


def test_int4_of_trained_like_weights_is_clearly_better_than_a_scale_of_the_largest_weight():
    weight = torch.randn(16 * GROUP, 64, generator=torch.Generator().manual_seed(0))
    groups = weight.reshape(16, GROUP, 64)
    scale = groups.abs().amax(1, keepdim=True) / 7
    usual = ((groups / scale).round().clamp(-8, 7) * scale - groups).square().mean()
    assert error(quantise_int4(weight), weight).square().mean() < 0.75 * usual


@pytest.mark.parametrize("quantise", [quantise_int4, quantise_int8])
@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16])
def test_what_is_on_the_grid_already_stays_exactly(quantise, scale_type):
    top = 8 if quantise is quantise_int4 else 127
    values = torch.randint(-top + 1, top, (GROUP, 5), generator=torch.Generator().manual_seed(1))
    values[0] = -top
    weight = values * torch.tensor([0.5, 0.25, 1.0, 2.0, 0.125])
    assert torch.equal(quantise(weight, scale_type).dequantised(), weight)


@pytest.mark.parametrize("quantise", [quantise_int4, quantise_int8])
def test_zeros_stay_zeros(quantise):
    assert not quantise(torch.zeros(GROUP, 3)).dequantised().any()


class Net(nn.Module):
    """Matrix products of each form that the exporter writes."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(2)
        self.biased = Linear(2 * GROUP, 24)
        self.plain = Linear(24, GROUP, bias=False)
        self.lm_head = Linear(GROUP, 7, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.plain(self.biased(x)) + x[:, :GROUP])


GRAPH = GraphSpec(
    file="net.onnx",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("C", 2 * GROUP)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("C", 7)),),
    dimensions={"C": Dimension(min=1, opt=8, max=8)},
)
BF16_GRAPH = GRAPH.model_copy(
    update={
        side: tuple(spec.model_copy(update={"dtype": "bfloat16"}) for spec in getattr(GRAPH, side))
        for side in ("inputs", "outputs")
    }
)
X = np.random.default_rng(0).standard_normal((5, 2 * GROUP), np.float32)


@functools.cache
def traced() -> onnx_ir.Model:
    return export_graph(Net().eval(), GRAPH, keep_weights=True)[0]


def written(folder, scheme: Scheme, ready=None):
    """Quantise what is exported, and write it; returns the file and the counts."""
    exported = traced().clone()
    counts = compress(exported, scheme, ready)
    list(write_graph(exported, folder / "net.onnx"))
    onnx.checker.check_model(folder / "net.onnx")
    return folder / "net.onnx", counts


def by_openvino(path) -> np.ndarray:
    (y,) = (
        openvino.Core().compile_model(path, "CPU", _properties(threads=1, streams=1))([X]).values()
    )
    return y


def exact(scheme: Scheme) -> np.ndarray:
    net = Net().eval()
    dequantise_parameters(net, scheme)
    with torch.no_grad():
        return net(torch.from_numpy(X)).numpy()


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [
        (Scheme(False, True, FLOAT), {"int8": 3}),
        (Scheme(True, True, FLOAT), {"int4": 1, "int8": 2}),
        (Scheme(True, False, FLOAT), {"int4": 1, "not quantised": 2}),
    ],
)
def test_an_engine_multiplies_with_the_integers_that_were_chosen(scheme, wanted, tmp_path):
    path, counts = written(tmp_path, scheme)
    assert counts == wanted
    right = exact(scheme)
    assert np.abs(by_openvino(path) - right).max() < 1e-5 * np.abs(right).max()
    with torch.no_grad():
        assert np.abs(Net()(torch.from_numpy(X)).numpy() - right).max() > 1e-3
    # onnxruntime rounds activations to 8 bits
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"x": X}
    )
    assert np.abs(y - right).max() < 5e-2 * np.abs(right).max()


def test_the_integers_of_a_quantised_checkpoint_are_taken_as_they_are(tmp_path):
    random = torch.Generator().manual_seed(3)
    ready = Quantised(
        torch.randint(0, 16, (2 * GROUP, 24), generator=random, dtype=torch.uint8),
        torch.rand(2, 24, generator=random) + 0.1,
        4,
        GROUP,
        torch.randint(0, 16, (2, 24), generator=random, dtype=torch.uint8),
    )
    scheme = Scheme(False, False, FLOAT)
    path, counts = written(tmp_path, scheme, {"biased.weight": ready})
    assert counts == {"int4": 1, "not quantised": 2}
    net = Net().eval()
    net.biased.weight.data = ready.dequantised().T
    with torch.no_grad():
        right = net(torch.from_numpy(X)).numpy()
    assert np.abs(by_openvino(path) - right).max() < 1e-5 * np.abs(right).max()


def packed(
    zero: int | None, bits: int = 4, group: int = GROUP, order: Tensor | None = None
) -> PackedWeight:
    """For `Net.biased`. zero: of all groups; None = others."""
    random, groups = torch.Generator().manual_seed(4), 2 * GROUP // group
    zeros = torch.randint(0, 2**bits, (24, groups), generator=random, dtype=torch.uint8)
    return PackedWeight(
        torch.randint(0, 2**bits, (24, 2 * GROUP), generator=random, dtype=torch.uint8),
        torch.rand(24, groups, generator=random) + 0.1,
        zeros if zero is None else torch.full_like(zeros, zero),
        group,
        bits,
        order,
    )


KINDS = {
    "symmetric": packed(8),
    "zero points": packed(None),
    "small groups": packed(8, group=32),
    "whole rows": packed(None, group=2 * GROUP),
    "8 bits": packed(128, bits=8),
}
ACT_ORDER = packed(8, order=torch.arange(2 * GROUP).flip(0) // GROUP)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_integers_become_those_of_an_engine_exactly(kind, tmp_path):
    scheme, weight = Scheme(True, True, FLOAT), KINDS[kind]
    ready = scheme.ready({"biased.weight": weight})
    found = ready["biased.weight"]
    assert torch.equal(found.dequantised(), weight.dequantised().T)
    assert found.group in (32, 128)  # which kernels take
    path, _ = written(tmp_path, scheme, ready)
    net = Net().eval()
    dequantise_parameters(net, scheme, ready)
    assert torch.equal(net.biased.weight, weight.dequantised())
    with torch.no_grad():
        right = net(torch.from_numpy(X)).numpy()
    assert np.abs(by_openvino(path) - right).max() < 1e-5 * np.abs(right).max()


def test_integers_in_act_order_become_int8_which_is_almost_exact():
    found = Scheme(True, True, FLOAT).ready({"biased.weight": ACT_ORDER})["biased.weight"]
    assert (found.bits, found.group) == (8, None)
    exact = ACT_ORDER.dequantised().T
    assert (found.dequantised() - exact).abs().max() < exact.abs().max() / 250


def test_tensorrt_takes_int4_without_zero_points_and_keeps_the_type_of_others(tmp_path):
    """Built, not run."""
    scheme = Scheme(True, False, TYPES["bf16"])
    cases = {**KINDS, "act-order": ACT_ORDER}
    taken = {kind: scheme.ready({"w": weight})["w"] for kind, weight in cases.items()}
    assert {kind for kind, found in taken.items() if found} == {"symmetric", "small groups"}
    exported, _ = export_graph(Net().eval().bfloat16(), BF16_GRAPH, keep_weights=True)
    counts = compress(exported, scheme, {"biased.weight": taken["small groups"]})
    assert counts == {"int4": 1, "not quantised": 2}
    list(write_graph(exported, tmp_path / "net.onnx"))
    job = PlanJob(
        model=tmp_path / "net.onnx",
        plan=tmp_path / "net.plan",
        graph=BF16_GRAPH,
        flavour="tensorrt_rtx",
    )
    assert build_plan(job).layer_types["DEQUANTIZE"] == 1


def test_integers_that_the_graph_does_not_have_are_an_error(tmp_path):
    scheme = Scheme(True, True, FLOAT)
    ready = scheme.ready({"other.weight": KINDS["symmetric"]})
    with pytest.raises(EngineError, match=r"no product with other\.weight"):
        written(tmp_path, scheme, ready)


def packed_checkpoint(folder: Path, method: str) -> Path:
    """One layer each: the export's time grows with them."""
    small = {"text": {"num_hidden_layers": 1}, "vision": {"depth": 1, "fullatt_block_indexes": [0]}}
    write_random_checkpoint(folder / "base", "tiny", seed=3, **small)
    shutil.copy(TOKENIZER, folder / "base")
    write_quantised(folder / "base", folder / "packed", folder / "plain", method)
    return folder / "packed"


def test_the_integers_of_a_checkpoint_are_those_of_its_language_graph(tmp_path):
    """As a build writes it, without the vision graphs, and run by OpenVINO."""
    packed, said = packed_checkpoint(tmp_path, "awq"), []
    spec = model_spec("m", read_configuration(packed), load_recipe("m"))
    whole = draft_manifest(packed, spec, "openvino", "fp32", "", weights="int4", kv="int8")
    graphs = {name: whole.graphs[name] for name in ("llm", "head")}
    manifest = whole.model_copy(update={"graphs": graphs})
    exported = dict(_exports(tmp_path, packed, manifest, said.append, None))
    assert "matrices of the llm graph: 4 int4" in said
    assert "matrices of the head graph: 1 int8" in said
    expand(exported["llm"])
    write_nodes(exported["llm"], tmp_path / "llm.onnx")
    random = np.random.default_rng(0)
    bound = language_inputs(spec, np.dtype(np.float32), 1, 5, random, "int8")
    tensors = [torch.from_numpy(bound[each.name]) for each in graphs["llm"].inputs]
    with torch.no_grad():
        right = _language(packed, manifest, None)(*tensors)
    engine = OpenVinoEngine(tmp_path / "llm.onnx", graphs["llm"], threads=1, streams=1)
    bound |= output_arrays(engine, bound)
    engine.enqueue(bound, InlineStream("test"))
    for each, wanted in zip(graphs["llm"].outputs, right, strict=True):
        off = np.abs(bound[each.name] - wanted.numpy()).max()
        assert off < 1e-4 * wanted.abs().max(), each.name


@pytest.mark.slow
@pytest.mark.parametrize(("method", "backend"), [("awq", "openvino"), ("gptq", "onnxruntime")])
def test_the_integers_of_a_checkpoint_are_those_of_its_engines(method, backend, tmp_path, capfd):
    words = ["--backend", backend, "--weights", "int4", "--kv", "int8", "--verify"]
    packed, folder = packed_checkpoint(tmp_path, method), tmp_path / "set"
    assert build.main([str(packed), *words, "--out", str(folder)]) == 0
    said = capfd.readouterr().err
    whole = {"awq": "4 int4", "gptq": "7 int8"}[method]  # that one is in act-order
    assert f"matrices of the llm graph: {whole}" in said
    assert "matrices of the head graph: 1 int8" in said
    assert "its integers are kept where engines can hold them" in said


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_engine_set_of_integers_equals_the_model_that_has_them(weights, tmp_path):
    folder = tmp_path / "set"
    command = [built_model(), "--out", str(folder), *built_options(), "--weights", weights]
    assert build.main([*command, "--backend", "openvino"]) == 0
    manifest = read_manifest(folder)
    assert manifest.weights == weights
    differences = list(compare(folder, resolve(built_model())))
    assert [str(each) for each in differences if not each.passed] == []
    with EngineSet.open(folder) as engines:
        assert engines.dtype == np.float32
    per_float = {"int8": 4, "int4": 8}[weights]  # integers in the bytes of one
    products = sum(each.numel() for each in language().layers.parameters())
    assert manifest.files["llm.bin"].bytes < 1.6 * products * 4 / per_float


def test_matrices_may_keep_the_type_of_the_checkpoint():
    folder = resolve(built_model())
    config = read_configuration(folder)
    model = load_language(folder, config, torch.float32, as_stored=True)
    assert model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.norm.weight.dtype == torch.float32
    assert model.embed_tokens.weight.dtype == torch.bfloat16


def language() -> nn.Module:
    folder = resolve(built_model())
    return load_language(folder, read_configuration(folder))
