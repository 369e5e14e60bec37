"""Relative errors of the matrix products of Qwen2.5-VL-3B with random weights, in int8 and int4.

Errors are Frobenius norms of the difference over that of the fp32 result. Activations are Gaussian.
Random weights say how much noise a format adds to a product, not what that does to answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import Tensor

from vicort.export import int4_products, int8_products
from vicort.export.graphs import write_graph
from vicort.export.int8_products import Arithmetic
from vicort.export.weight_compression import (
    GROUP,
    Quantised,
    Scheme,
    compress,
    quantise_int4,
    quantise_int8,
)
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.backend import CpuBackend
from vicort.runtime.manifest import GraphSpec, TensorSpec
from vicort.runtime.telemetry import without_telemetry

ROWS = 64  # of activations
HEAD_COLUMNS = 8192  # of 151,936: columns are alike, and one is not affected by another
DEGREES = 4  # of freedom of Student's t


@dataclass(frozen=True)
class MatrixProduct:
    """A kind of product: [ROWS,inputs] times [inputs,outputs]."""

    name: str
    inputs: int
    outputs: int
    weight: str  # its name in a graph

    @property
    def vision(self) -> bool:
        return self.weight.startswith("encoder.")

    @property
    def int4(self) -> bool:
        """Whether --weights int4 makes it int4."""
        return self.weight.startswith("layers.")


PRODUCTS = (
    MatrixProduct("qkv", 2048, 2560, "layers.0.self_attn.qkv.weight"),
    MatrixProduct("gate and up", 2048, 22016, "layers.0.mlp.joined.weight"),
    MatrixProduct("down", 11008, 2048, "layers.0.mlp.down_proj.weight"),
    MatrixProduct("head", 2048, HEAD_COLUMNS, "lm_head.weight"),
    MatrixProduct("vision qkv", 1280, 3840, "encoder.blocks.0.attn.qkv.weight"),
    MatrixProduct("vision gate and up", 1280, 6912, "encoder.blocks.0.mlp.joined.weight"),
    MatrixProduct("vision down", 3456, 1280, "encoder.blocks.0.mlp.down_proj.weight"),
)


def gaussian(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(shape: tuple[int, int], seed: int) -> Tensor:
    """Student's t with DEGREES degrees of freedom."""
    drawn = np.random.default_rng(seed).standard_t(DEGREES, shape)
    return torch.from_numpy(drawn.astype(np.float32))


DISTRIBUTIONS: dict[str, Callable[[tuple[int, int], int], Tensor]] = {
    "gaussian": gaussian,
    f"student t, {DEGREES} degrees": heavy_tailed,
}


def product_errors(word: str = "") -> dict[str, Any]:
    """By distribution, product and type. word: only products whose name has it."""
    return {
        "rows": ROWS,
        "head columns": HEAD_COLUMNS,
        "errors": {
            name: {each.name: errors_of(each, draw) for each in PRODUCTS if word in each.name}
            for name, draw in DISTRIBUTIONS.items()
        },
    }


def errors_of(
    product: MatrixProduct, draw: Callable[[tuple[int, int], int], Tensor]
) -> dict[str, Any]:
    weight = draw((product.inputs, product.outputs), product.inputs)
    x = gaussian((ROWS, product.inputs), 1)
    kinds = {"int8": quantise_int8} | ({"int4": quantise_int4} if product.int4 else {})
    found: dict[str, Any] = {"shape": [product.inputs, product.outputs]}
    for kind, quantise in kinds.items():
        found[kind] = measured(product, weight, x, quantise(weight), kind == "int4")
    if product.int4:
        found["int4 of nncf"] = beside_nncf(weight, x)
    return found


def measured(
    product: MatrixProduct, weight: Tensor, x: Tensor, integers: Quantised, int4: bool
) -> dict[str, float]:
    exact, stored = x @ weight, integers.dequantised()
    errors = {
        "weight": relative(stored, weight),
        "product": relative(x @ stored, exact),
    }
    ways: dict[str, Arithmetic | None] = {
        "openvino": None,
        "onnxruntime": Arithmetic(many_rows=product.vision),
    }
    rounded = Arithmetic(many_rows=product.vision, rounded=True)
    if product.vision and rounded.is_rounded(product.weight):
        ways["onnxruntime, activations int8"] = rounded
    for way, arithmetic in ways.items():
        found = engine_product(product.weight, weight, x, int4, arithmetic)
        errors[way] = relative(found, exact)
    return errors


def relative(found: Tensor, exact: Tensor) -> float:
    return float(f"{float((found - exact).norm() / exact.norm()):.4g}")


def engine_product(
    name: str, weight: Tensor, x: Tensor, int4: bool, arithmetic: Arithmetic | None
) -> Tensor:
    """x times the weight as a build stores it, in fp32: by onnxruntime's operators with this
    arithmetic, or by OpenVINO for None."""
    shapes = {"x": tuple(x.shape), "y": (x.shape[0], weight.shape[1])}
    specs = {name: TensorSpec(name=name, dtype="float32", shape=s) for name, s in shapes.items()}
    signature = GraphSpec(
        file="product.onnx", inputs=(specs["x"],), outputs=(specs["y"],), dimensions={}
    )
    y = np.empty(shapes["y"], np.float32)
    with TemporaryDirectory() as folder:
        path = Path(folder) / signature.file
        model = product_graph(name, weight, shapes)
        compress(model, Scheme(int4, True, onnx_ir.DataType.FLOAT))
        if arithmetic:
            int4_products.use_operator(model)
            int8_products.use_operators(model, arithmetic)
        list(write_graph(model, path))
        backend = CpuBackend("onnxruntime" if arithmetic else "openvino", 1)
        engine = backend.load(path, signature, streams=1)
        engine.enqueue({"x": x.numpy(), "y": y}, InlineStream("product")).done()
    return torch.from_numpy(y)


def product_graph(name: str, weight: Tensor, shapes: dict[str, tuple[int, ...]]) -> onnx_ir.Model:
    """A graph with inputs x and the constant weight, and their product y."""
    kind = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    x = onnx_ir.Value(name="x", type=kind, shape=onnx_ir.Shape(shapes["x"]))
    constant = onnx_ir.tensor(weight.numpy(), name=name)
    w = onnx_ir.Value(name=name, type=kind, shape=constant.shape, const_value=constant)
    node = onnx_ir.node("MatMul", [x, w])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, onnx_ir.Shape(shapes["y"])
    graph = onnx_ir.Graph(
        [x], [y], nodes=[node], initializers=[w], opset_imports={"": 23}, name="product"
    )
    return onnx_ir.Model(graph, ir_version=11)


def beside_nncf(weight: Tensor, x: Tensor) -> dict[str, Any]:
    """The same errors of NNCF's data-free int4 (symmetric, groups of GROUP inputs)."""
    try:
        with without_telemetry():
            import nncf
            import openvino
            from openvino import opset13
    except ImportError as error:
        return {"skipped": f"{error.name} is not installed"}
    inputs = opset13.parameter([-1, weight.shape[0]], np.float32, name="x")
    constant = opset13.constant(np.ascontiguousarray(weight.T.numpy()))
    output = opset13.matmul(inputs, constant, False, True)
    model = openvino.Model([output], [inputs], "product")
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP,
        ratio=1.0,
        all_layers=True,
    )
    # without rounded activations, so that it is the weights that are compared
    plain = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.compile_model(model, "CPU", plain)
    identity = torch.from_numpy(compiled(np.eye(weight.shape[0], dtype=np.float32))[0])
    exact = x @ weight
    return {
        "weight": relative(identity, weight),
        "product": relative(x @ identity, exact),
        "openvino": relative(torch.from_numpy(compiled(x.numpy())[0]), exact),
        "version": nncf.__version__,
    }
