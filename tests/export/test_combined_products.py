"""Products of one input as one product, and widths filled up with zeros: the results are those of
the separate products."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from support.plain_packing import drawn
from torch import Tensor, nn

from vicort.export.graphs import export_graph, write_graph
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import VisionConfiguration
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear, SwiGLU
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.weight_compression import (
    TYPES,
    Scheme,
    compress,
    dequantise_parameters,
    quantise_int4,
    quantise_int8,
)
from vicort.runtime.manifest import Dimension, GraphSpec, TensorSpec

WIDTH, INTERMEDIATE, PADDED = 256, 180, 256
GRAPH = GraphSpec(
    file="block.onnx",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("C", WIDTH)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("C", WIDTH)),),
    dimensions={"C": Dimension(min=1, opt=8, max=8)},
)
X = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, bias: bool = True, padded: int | None = PADDED, intermediate=INTERMEDIATE):
        super().__init__()
        self.mlp = SwiGLU(WIDTH, intermediate, bias, padded)
        random = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) / 8
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_one_product_gives_what_several_give(bias, copies):
    block = Block(bias)
    before = block(X)
    combine(block, copies=copies)
    products = [each for each in block.modules() if isinstance(each, Linear | JoinedLinear)]
    assert [(*each.weight.shape,) for each in products] == [(WIDTH, PADDED), (2 * PADDED, WIDTH)]
    torch.testing.assert_close(block(X), before, atol=1e-5, rtol=1e-5)


def test_memory_holds_each_weight_once():
    """Weights of a checkpoint are parts of mapped files."""
    block = Block()
    parts = [layer.weight.data_ptr() for layer in (block.mlp.gate_proj, block.mlp.up_proj)]
    combine(block)
    assert [each.data_ptr() for each in block.mlp.joined.weights][::2] == parts
    assert not hasattr(block.mlp, "gate_proj")


@pytest.mark.parametrize(
    ("width", "padded"),
    [(3420, 3456), (3456, 3456), (180, 256), (192, 192), (64, 64), (100, 100), (128, 128)],
)
def test_widths_that_64_does_not_divide_are_filled_up_to_a_multiple_of_128(width, padded):
    one = (0.5, 0.5, 0.5)
    config = VisionConfiguration(1, 64, width, 1, 14, 2, 112, (0,), one, one)
    assert config.padded_intermediate == padded


@pytest.mark.parametrize("quantise", [quantise_int4, quantise_int8])
def test_integers_of_a_joined_weight_are_those_of_its_parts(quantise):
    """Bit for bit: groups run along the inputs."""
    block = Block()
    parts = [quantise(layer.weight.T) for layer in (block.mlp.gate_proj, block.mlp.up_proj)]
    combine(block)
    whole = quantise(block.mlp.joined.weight.T)
    extra = PADDED - INTERMEDIATE
    start = 0
    for part in parts:
        columns = slice(start, start + INTERMEDIATE)
        assert torch.equal(whole.values[:, columns], part.values)
        assert torch.equal(whole.scales[..., columns], part.scales)
        assert not whole.values[:, columns.stop : columns.stop + extra].any()
        start = columns.stop + extra


def packed(seed: int, symmetric: bool = False, **form) -> PackedWeight:
    plain = drawn(INTERMEDIATE, WIDTH, form.pop("group", 32), seed, **form)
    zeros = torch.from_numpy(plain.zeros).to(torch.uint8)
    group = WIDTH // zeros.shape[1]
    is_plain = (plain.order == np.arange(WIDTH) // group).all()
    return PackedWeight(
        values=torch.from_numpy(plain.values).to(torch.uint8),
        scales=torch.from_numpy(plain.scales.astype(np.float32)),
        zeros=torch.full_like(zeros, 2 ** (plain.bits - 1)) if symmetric else zeros,
        group=group,
        bits=plain.bits,
        order=None if is_plain else torch.from_numpy(plain.order),
    )


ACT_ORDER = packed(3, act_order=True)
ALIKE = {
    "zero points": (packed(1), packed(2)),
    "symmetric": (packed(1, symmetric=True), packed(2, symmetric=True)),
    "8 bits": (packed(1, bits=8), packed(2, bits=8)),
    "one act-order": (ACT_ORDER, replace(packed(4), order=ACT_ORDER.order)),
}
UNLIKE = {
    "bits": (packed(1), packed(2, bits=8)),
    "groups": (packed(1), packed(2, group=64)),
    "zero points": (packed(1), packed(2, symmetric=True)),
    "act-order": (packed(1), ACT_ORDER),
    "two act-orders": (packed(5, act_order=True), ACT_ORDER),
    "the first is not quantised": (None, packed(2)),
    "the second is not quantised": (packed(1), None),
}


def with_integers(parts) -> tuple[Block, dict[str, PackedWeight]]:
    block = Block(bias=False, padded=None)
    layers, found = (block.mlp.gate_proj, block.mlp.up_proj), {}
    for name, layer, part in zip(block.mlp.parts, layers, parts, strict=True):
        if part:
            layer.weight.data = part.dequantised()
            found[f"mlp.{name}.weight"] = part
    return block, found


@pytest.mark.parametrize("kind", ALIKE)
def test_integers_of_a_checkpoint_that_are_stored_alike_are_joined(kind):
    block, found = with_integers(ALIKE[kind])
    combine(block, found)
    whole, parts = found["mlp.joined.weight"], ALIKE[kind]
    assert found.keys() == {"mlp.joined.weight"}
    assert torch.equal(whole.dequantised(), torch.cat([part.dequantised() for part in parts]))
    assert torch.equal(whole.values, torch.cat([part.values for part in parts]))
    assert whole.is_symmetric == parts[0].is_symmetric
    assert torch.equal(block.mlp.joined.weight, whole.dequantised())


@pytest.mark.parametrize("kind", UNLIKE)
def test_products_that_are_stored_in_different_ways_stay_separate(kind):
    block, found = with_integers(UNLIKE[kind])
    before, names = block(X), found.keys()
    combine(block, found)
    assert block.mlp.joined is None
    assert found.keys() == names
    assert torch.equal(block(X), before)


def weights(path) -> dict[str, list[int]]:
    """The matrices of a file."""
    model = onnx_ir.load(path)
    return {
        name: list(value.const_value.shape)
        for name, value in model.graph.initializers.items()
        if len(value.const_value.shape) == 2
    }


def run(path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X.numpy()})[0]


@pytest.mark.parametrize("keep", [False, True])
def test_a_graph_stores_a_joined_weight_as_one(keep, tmp_path):
    block = Block()
    right = block(X)
    combine(block)
    exported, _ = export_graph(block, GRAPH, keep_weights=keep)
    list(write_graph(exported, tmp_path / "block.onnx"))
    onnx.checker.check_model(tmp_path / "block.onnx")
    found = weights(tmp_path / "block.onnx")
    assert found.keys() == {"mlp.joined.weight", "mlp.down_proj.weight"}
    assert [sorted(shape) for shape in found.values()] == [[WIDTH, 2 * PADDED], [WIDTH, PADDED]]
    torch.testing.assert_close(
        torch.from_numpy(run(tmp_path / "block.onnx")), right, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["zero points", "symmetric"])
def test_an_engine_gets_the_joined_integers_of_a_checkpoint(kind, tmp_path):
    block, found = with_integers(ALIKE[kind])
    combine(block, found)
    scheme = Scheme(True, True, TYPES["fp32"])
    ready = scheme.ready(found)
    exported, _ = export_graph(block, GRAPH, keep_weights=True)
    assert compress(exported, scheme, ready) == {"int4": 1, "int8": 1}
    list(write_graph(exported, tmp_path / "block.onnx"))
    stored = onnx_ir.load(tmp_path / "block.onnx").graph.initializers["mlp.joined.weight.values"]
    values = stored.const_value.numpy().astype(np.int16)
    middle = 8 if kind == "symmetric" else 0
    wanted = torch.cat([part.values for part in ALIKE[kind]]).numpy().T.astype(np.int16)
    assert np.array_equal(values, wanted - middle)
    dequantise_parameters(block, scheme, ready)
    rounded = 5e-2  # onnxruntime rounds activations to 8 bits
    right = block(X).numpy()
    assert np.abs(run(tmp_path / "block.onnx") - right).max() < rounded * np.abs(right).max()


def test_parts_of_two_types_have_the_wider_one():
    block = Block(padded=None)
    gate, up = block.mlp.gate_proj, block.mlp.up_proj
    gate.weight.data, up.weight.data = gate.weight.half(), up.weight.bfloat16()
    combine(block)
    assert {each.dtype for each in block.mlp.joined.weights} == {torch.float32}
    rows = itertools.chain(gate.weight.float(), up.weight.float())
    assert torch.equal(block.mlp.joined.weight, torch.stack(list(rows)))
