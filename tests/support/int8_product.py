"""A graph of one product with 8-bit weights, as a build writes it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

QKV = "encoder.blocks.0.attn.qkv.weight"


def product(
    random: np.random.Generator, inputs: int, outputs: int, groups: int | None, name: str = QKV
) -> tuple[onnx.ModelProto, np.ndarray]:
    """y = x W with x [B,S,in], and W [in,out] float64. groups: None = a scale for each column,
    signed; else scales and zero points for groups of inputs, as checkpoints have them."""
    kind = TensorProto.INT8 if groups is None else TensorProto.UINT8
    integers = random.integers(0, 256, (inputs, outputs)).astype(np.uint8)
    values = integers.view(np.int8) if groups is None else integers
    shape = (outputs,) if groups is None else (groups, outputs)
    scales = (random.random(shape, np.float32) + 0.5) / 1000
    constants = [
        helper.make_tensor(f"{name}.values", kind, values.shape, values.tobytes(), raw=True),
        helper.make_tensor(f"{name}.scales", TensorProto.FLOAT, shape, scales.tobytes(), raw=True),
    ]
    zeros, layout = np.zeros(shape), {"axis": 1}
    if groups is not None:
        zeros = random.integers(100, 156, shape).astype(np.uint8)
        constants.append(
            helper.make_tensor(f"{name}.zeros", kind, shape, zeros.tobytes(), raw=True)
        )
        layout = {"axis": 0, "block_size": inputs // groups}
    repeats = 1 if groups is None else inputs // groups
    spread = [np.repeat(np.atleast_2d(each), repeats, axis=0) for each in (zeros, scales)]
    weight = (values.astype(np.float64) - spread[0]) * spread[1]
    nodes = [
        helper.make_node("DequantizeLinear", [each.name for each in constants], ["w"], **layout),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("B", "S", inputs))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("B", "S", outputs))
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), weight
