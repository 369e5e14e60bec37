"""int4 products as onnxruntime's operator: the same integers, compared through OpenVINO, which
reads both forms and multiplies in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vicort.export.graphs import write_graph
from vicort.export.int4_products import use_operator
from vicort.runtime.engines.onnxruntime import UNWANTED


def packed(integers: np.ndarray) -> bytes:
    low, high = integers.reshape(-1, 2).T & 15
    return (low | high << 4).astype(np.uint8).tobytes()


def residual_product(
    random: np.random.Generator, groups: int, group: int, zeros: bool
) -> onnx.ModelProto:
    """y = x + x W, W [n,n] of int4 integers."""
    n, kind = groups * group, TensorProto.UINT4 if zeros else TensorProto.INT4
    least = 0 if zeros else -8
    values = random.integers(least, least + 16, (n, n))
    scales = random.random((groups, n), np.float32) / n
    inputs = [
        helper.make_tensor("values", kind, (n, n), packed(values), raw=True),
        helper.make_tensor("scales", TensorProto.FLOAT, (groups, n), scales.tobytes(), raw=True),
    ]
    if zeros:
        points = packed(random.integers(0, 16, (groups, n)))
        inputs.append(helper.make_tensor("zeros", kind, (groups, n), points, raw=True))
    names = [each.name for each in inputs]
    nodes = [
        helper.make_node("DequantizeLinear", names, ["w"], axis=0, block_size=group),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["x", "xw"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("C", n)) for name in "xy")
    graph = helper.make_graph(nodes, "product", [x], [y], inputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def by_openvino(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return next(iter(compiled([x]).values()))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([16, 32, 128]), st.booleans())
def test_the_operator_has_the_same_integers_scales_and_zero_points(seed, groups, group, zeros):
    random = np.random.default_rng(seed)
    model = residual_product(random, groups, group, zeros)
    replaced = onnx_ir.from_proto(model)
    assert use_operator(replaced) == 1
    written = onnx_ir.to_proto(replaced)
    assert [node.op_type for node in written.graph.node] == ["MatMulNBits", "Add"]
    x = random.standard_normal((3, groups * group), np.float32)
    right = by_openvino(model, x)
    assert np.abs(by_openvino(written, x) - right).max() < 1e-5 * np.abs(right).max()


def test_other_products_are_left_alone():
    model = onnx_ir.from_proto(residual_product(np.random.default_rng(0), 1, 16, False))
    values = model.graph.initializers["values"]
    values.const_value = onnx_ir.tensor(np.ones((16, 16), np.int8))
    values.dtype = onnx_ir.DataType.INT8
    assert use_operator(model) == 0
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "Add"]


@pytest.mark.parametrize("replaced", [False, True])
def test_onnxruntime_multiplies_with_the_integers_even_before_a_residual_addition(
    replaced: bool, tmp_path: Path
):
    model = onnx_ir.from_proto(residual_product(np.random.default_rng(0), 2, 128, False))
    if replaced:
        use_operator(model)
    list(write_graph(model, tmp_path / "net.onnx"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        tmp_path / "net.onnx",
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=UNWANTED,
    )
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node] == ["MatMulNBits", "Add"]
