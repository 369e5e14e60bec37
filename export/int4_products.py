"""int4 products as onnxruntime's own operator, so that it has nothing to repack when it loads."""

from __future__ import annotations

from collections.abc import Callable

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
        constants = [None if each is None else each.const_value for each in source.inputs]
        if None in constants[:2] or values.dtype not in PACKED:
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
    stored, factors = values.const_value, scales.const_value
    inputs, outputs = stored.shape
    groups = factors.shape[0]
    # in bytes of two integers
    shape = (outputs, groups, inputs // groups // 2)
    parts = [
        node.inputs[0],
        _initialiser(
            graph,
            f"{values.name}.nbits",
            lambda: _pairs(_unpacked(stored).T).reshape(shape),
            onnx_ir.DataType.UINT8,
            shape,
        ),
        _initialiser(
            graph,
            f"{scales.name}.nbits",
            lambda: np.ascontiguousarray(factors.numpy().T),
            factors.dtype,
            (outputs, groups),
        ),
    ]
    if zeros is not None:
        points, width = zeros.const_value, -(-groups // 2)
        parts.append(
            _initialiser(
                graph,
                f"{zeros.name}.nbits",
                lambda: _pairs(np.pad(_unpacked(points).T, ((0, 0), (0, groups % 2)))),
                onnx_ir.DataType.UINT8,
                (outputs, width),
            )
        )
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


def _unpacked(constant: onnx_ir.TensorProtocol) -> np.ndarray:
    """The operator's unsigned integers, [in,out] uint8: signed ones are moved by 8."""
    pairs = np.frombuffer(constant.tobytes(), np.uint8)
    integers = np.stack([pairs & 15, pairs >> 4], 1).reshape(constant.shape.numpy())
    return integers ^ MIDDLE if constant.dtype == SIGNED else integers


def _pairs(integers: np.ndarray) -> np.ndarray:
    """[rows,n] uint8 below 16 -> [rows,n/2] uint8, the first of two in the low half."""
    return np.ascontiguousarray(integers[:, ::2] | integers[:, 1::2] << 4)


def _initialiser(
    graph: onnx_ir.Graph,
    name: str,
    make: Callable[[], np.ndarray],
    dtype: onnx_ir.DataType,
    shape: tuple[int, ...],
) -> onnx_ir.Value:
    """make: called when the tensor is written, so that memory holds one at a time."""
    constant = onnx_ir.LazyTensor(
        lambda: onnx_ir.Tensor(make(), dtype, name=name), dtype, onnx_ir.Shape(shape), name=name
    )
    value = onnx_ir.Value(
        name=name,
        const_value=constant,
        type=onnx_ir.TensorType(dtype),
        shape=onnx_ir.Shape(shape),
    )
    graph.register_initializer(value)
    return value
