"""int4 products as onnxruntime's own operator, so that it has nothing to repack when it loads."""

from __future__ import annotations

import numpy as np
import onnx_ir
import onnx_ir.passes.common as passes

DOMAIN = "com.microsoft"  # of contrib_ops/cpu/quantization/matmul_nbits.cc
INT8_ACTIVATIONS = 4  # accuracy level
MIDDLE = 8  # zero point of the operator where none is given
SIGNED = onnx_ir.DataType.INT4
PACKED = (SIGNED, onnx_ir.DataType.UINT4)


def use_operator(model: onnx_ir.Model) -> int:
    """Replace MatMul(x, DequantizeLinear(int4 or uint4 in groups of inputs)) in place by
    MatMulNBits(x), with the same integers and scales. Returns the number of products."""
    count = 0
    for node in list(model.graph):
        source = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        values, scales, *zeros = source.inputs
        if values is None or scales is None or values.dtype not in PACKED:
            continue
        _replace(model.graph, node, values, scales, zeros[0] if zeros else None)
        count += 1
    if count:
        model.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(model)
    return count


def _replace(
    graph: onnx_ir.Graph,
    node: onnx_ir.Node,
    values: onnx_ir.Value,
    scales: onnx_ir.Value,
    zeros: onnx_ir.Value | None,
) -> None:
    integers = _unpacked(values)  # [in,out]
    inputs, outputs = integers.shape
    groups = scales.const_value.shape[0]
    packed = _pairs(integers.T).reshape(outputs, groups, -1)
    parts = [node.inputs[0], _initialiser(graph, f"{values.name}.nbits", packed)]
    parts.append(
        _initialiser(
            graph,
            f"{scales.name}.nbits",
            np.ascontiguousarray(scales.const_value.numpy().T),
        )
    )
    if zeros is not None:
        points = _unpacked(zeros).T  # [out,groups]
        odd = points.shape[1] % 2
        points = np.pad(points, ((0, 0), (0, odd)))
        parts.append(_initialiser(graph, f"{zeros.name}.nbits", _pairs(points)))
    product = onnx_ir.node(
        "MatMulNBits",
        parts,
        {
            "K": inputs,
            "N": outputs,
            "bits": 4,
            "block_size": inputs // groups,
            "accuracy_level": INT8_ACTIVATIONS,
        },
        domain=DOMAIN,
    )
    result = product.outputs[0]
    result.dtype, result.shape = scales.dtype, node.outputs[0].shape
    onnx_ir.convenience.replace_nodes_and_values(
        graph, node, [node], [product], node.outputs, product.outputs
    )


def _unpacked(value: onnx_ir.Value) -> np.ndarray:
    """The operator's unsigned integers, [in,out] uint8: signed ones are moved by 8."""
    constant = value.const_value
    if constant is None:
        raise ValueError(f"{value.name} is not a constant")
    pairs = np.frombuffer(constant.tobytes(), np.uint8)
    integers = np.stack([pairs & 15, pairs >> 4], 1).reshape(constant.shape.numpy())
    return integers ^ MIDDLE if value.dtype == SIGNED else integers


def _pairs(integers: np.ndarray) -> np.ndarray:
    """[rows,n] uint8 below 16 -> [rows,n/2] uint8, the first of two in the low half."""
    return np.ascontiguousarray(integers[:, ::2] | integers[:, 1::2] << 4)


def _initialiser(graph: onnx_ir.Graph, name: str, array: np.ndarray) -> onnx_ir.Value:
    value = onnx_ir.Value(
        name=name,
        const_value=onnx_ir.Tensor(array, name=name),
        type=onnx_ir.TensorType(onnx_ir.DataType.from_numpy(array.dtype)),
        shape=onnx_ir.Shape(array.shape),
    )
    graph.register_initializer(value)
    return value
