"""int8 products as onnxruntime's own operators, so that it has nothing to convert when it loads,
and multiplies in the way that suits the number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir
import onnx_ir.passes.common as passes

from vicort.export.int4_products import DOMAIN, INT8_ACTIVATIONS

MAX_GROUP = 128  # inputs that share a scale in the operator, also where they could all share one
MIN_GROUP = 16  # of the operator
FLOAT_ACTIVATIONS = 1  # accuracy level: weights are dequantised in each run, for many rows
MIDDLE = 128  # zero point of the operator where none is given
LARGEST = 127  # of an activation in int8
LEAST = 1e-30  # magnitude of a row's largest activation: rows of zeros stay zeros
# inputs of the products in a block that come out of a norm or of an average of values. Those of
# the down projection are products of two activations, with outliers that 8 bits a row lose.
ROUNDED = ("attn.qkv", "attn.proj", "mlp.joined")
QUANTISED = (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8)


@dataclass(frozen=True)
class Arithmetic:
    """How a graph multiplies with int8 weights."""

    many_rows: bool  # in each run: float32, without rounding activations; else int8 in groups
    rounded: bool = False  # products of ROUNDED: int8 activations with one scale a row

    def is_rounded(self, weight: str) -> bool:
        """weight: name of a matrix."""
        return self.rounded and any(f".{name}.weight" in weight for name in ROUNDED)


def use_operators(model: onnx_ir.Model, arithmetic: Arithmetic) -> int:
    """Replace MatMul(x, DequantizeLinear(int8 or uint8)) in place by onnxruntime's operators, with
    the same integers and scales. Returns the number of products."""
    count = 0
    for node in list(model.graph):
        source = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        values = source.inputs[0]
        if values is None or values.const_value is None or values.dtype not in QUANTISED:
            continue
        matrix = _Matrix.of(source)
        if arithmetic.is_rounded(matrix.name) and matrix.is_by_column:
            _multiply_rounded(model.graph, node, matrix)
        else:
            level = FLOAT_ACTIVATIONS if arithmetic.many_rows else INT8_ACTIVATIONS
            _multiply(model.graph, node, matrix, level)
        count += 1
    if count:
        model.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(model)
    return count


@dataclass(frozen=True)
class _Matrix:
    """w = (values - zeros) * scales"""

    name: str  # of its initialiser
    values: np.ndarray  # [in,out] uint8
    scales: np.ndarray  # [groups,out] float32
    zeros: np.ndarray | None  # [groups,out] uint8; None: 128

    @classmethod
    def of(cls, node: onnx_ir.Node) -> _Matrix:
        """Of a DequantizeLinear of 8 bits; signed integers are moved by 128."""
        parts = [value.const_value.numpy() for value in node.inputs]
        values, scales, zeros = parts[0], parts[1].reshape(-1, parts[0].shape[1]), parts[2:]
        if values.dtype == np.int8:
            values = values.view(np.uint8) ^ MIDDLE
        points = zeros[0].reshape(scales.shape) if zeros else None
        return cls(node.inputs[0].name, values, scales, points)

    @property
    def is_by_column(self) -> bool:
        return len(self.scales) == 1

    @property
    def group(self) -> int:
        """Inputs that share a scale in the operator: a power of two."""
        inputs, groups = len(self.values), len(self.scales)
        if groups > 1:
            return inputs // groups
        return max(min(1 << (inputs.bit_length() - 1), MAX_GROUP), MIN_GROUP)


def _multiply(graph: onnx_ir.Graph, node: onnx_ir.Node, matrix: _Matrix, level: int) -> None:
    """By MatMulNBits of 8 bits. level: FLOAT_ACTIVATIONS or INT8_ACTIVATIONS."""
    inputs, outputs = matrix.values.shape
    groups = -(-inputs // matrix.group)
    padded = np.full((outputs, groups * matrix.group), MIDDLE, np.uint8)
    padded[:, :inputs] = matrix.values.T
    constants = {"nbits": padded.reshape(outputs, groups, matrix.group)}
    constants["nbits_scales"] = np.repeat(matrix.scales.T, groups // len(matrix.scales), axis=1)
    if matrix.zeros is not None:
        constants["nbits_zeros"] = np.repeat(matrix.zeros.T, groups // len(matrix.zeros), axis=1)
    product = onnx_ir.node(
        "MatMulNBits",
        [node.inputs[0], *_initialisers(graph, matrix.name, constants)],
        {
            "K": inputs,
            "N": outputs,
            "bits": 8,
            "block_size": matrix.group,
            "accuracy_level": level,
        },
        domain=DOMAIN,
    )
    _replace(graph, node, [product])


def _multiply_rounded(graph: onnx_ir.Graph, node: onnx_ir.Node, matrix: _Matrix) -> None:
    """x W = largest * ((x / largest) W), largest = max |x| of a row: so a row of x / largest is
    rounded with a scale of its own, and does not depend on other rows."""
    constants = {
        "values": matrix.values,
        "scales": matrix.scales[0],
        "zeros": np.full(matrix.values.shape[1], MIDDLE, np.uint8)
        if matrix.zeros is None
        else matrix.zeros[0],
        "step": np.array(1 / LARGEST, np.float32),
        "middle": np.array(MIDDLE, np.uint8),
        "axes": np.array([-1], np.int64),
        "least": np.array(LEAST, np.float32),
    }
    named = dict(
        zip(constants, _initialisers(graph, f"{matrix.name}.rounded", constants), strict=True)
    )
    step, middle = named["step"], named["middle"]
    x = node.inputs[0]
    magnitude = onnx_ir.node("Abs", [x])
    maximum = onnx_ir.node("ReduceMax", [magnitude.outputs[0], named["axes"]], {"keepdims": 1})
    largest = onnx_ir.node("Max", [maximum.outputs[0], named["least"]])
    scaled = onnx_ir.node("Div", [x, largest.outputs[0]])
    rounded = onnx_ir.node("QuantizeLinear", [scaled.outputs[0], step, middle])
    product = onnx_ir.node(
        "MatMulIntegerToFloat",
        [rounded.outputs[0], named["values"], step, named["scales"], middle, named["zeros"]],
        domain=DOMAIN,
    )
    result = onnx_ir.node("Mul", [product.outputs[0], largest.outputs[0]])
    _replace(graph, node, [magnitude, maximum, largest, scaled, rounded, product, result])


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node, nodes: list[onnx_ir.Node]) -> None:
    result = nodes[-1].outputs[0]
    result.dtype, result.shape = onnx_ir.DataType.FLOAT, node.outputs[0].shape
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, [result])


def _initialisers(
    graph: onnx_ir.Graph, name: str, constants: dict[str, np.ndarray]
) -> list[onnx_ir.Value]:
    """Those of one matrix; a second product with the same matrix gets the same."""
    found = []
    for part, array in constants.items():
        full = f"{name}.{part}"
        if full not in graph.initializers:
            constant = onnx_ir.Tensor(np.ascontiguousarray(array), name=full)
            value = onnx_ir.Value(
                name=full,
                const_value=constant,
                type=onnx_ir.TensorType(constant.dtype),
                shape=constant.shape,
            )
            graph.register_initializer(value)
        found.append(graph.initializers[full])
    return found
