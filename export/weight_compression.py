"""Integer weights for the matrix products of a graph, dequantised inside the engine.

int8: one scale for each output column. int4: one scale for each group of 128 inputs of a column.
With int4, vision encoders, the output head, and matrices whose inputs do not divide into such
groups are int8; in TensorRT, which has no such products, they keep their type. So do embeddings,
norms and biases.

TensorRT's int8 and fp8 products have inputs of that type on both sides: see eight_bit_inputs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir
import onnx_ir.passes.common as passes
import torch
from onnx_ir import tensor_adapters
from torch import Tensor, nn

from vicort.export.eight_bit_inputs import (
    FP8,
    MAX_FP8,
    MAX_INT8,
    EightBit,
    round_input,
    scale_of,
)
from vicort.export.graphs import as_torch
from vicort.export.product_choice import DATA_FREE, Choices
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphName, Manifest, Precision, Weights

GROUP = 128  # inputs that share a scale
MIN_GROUP = 16  # of the kernels
MAX_INT4 = 8  # magnitude
# of the scale that a group's largest weight asks for: a smaller one cuts that weight off, and
# rounds the others less
SHRUNK = torch.linspace(0.65, 1, 8).tolist()
TYPES: dict[Precision, onnx_ir.DataType] = {
    "fp32": onnx_ir.DataType.FLOAT,
    "bf16": onnx_ir.DataType.BFLOAT16,
}
SCALE_TYPES = {
    onnx_ir.DataType.FLOAT: torch.float32,
    onnx_ir.DataType.BFLOAT16: torch.bfloat16,
}
_PACKED = (onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4)
_TYPES = {  # by bits, and whether there are zero points
    (8, False): onnx_ir.DataType.INT8,
    (8, True): onnx_ir.DataType.UINT8,
    (4, False): onnx_ir.DataType.INT4,
    (4, True): onnx_ir.DataType.UINT4,
}
BLOCK = 1 << 20  # elements that are quantised at a time: they stay in the cache
HEADS = ("lm_head.weight",)
LANGUAGE: tuple[GraphName, ...] = ("llm", "head")


@dataclass(frozen=True)
class Quantised:
    """A matrix [in,out] as integers, or as fp8. w = (values - zeros) * scales, a scale for each
    group of rows, or one for all."""

    values: Tensor  # [in,out] int8, uint8 with zeros, or float8_e4m3fn
    scales: Tensor  # [in/group,out], or [out]
    bits: int
    group: int | None = None  # None: all inputs
    zeros: Tensor | None = None  # [in/group,out] uint8

    @property
    def kind(self) -> str:
        """int4, int8 or fp8"""
        return "fp8" if self.values.dtype == FP8 else f"int{self.bits}"

    @property
    def stored_type(self) -> onnx_ir.DataType:
        """Of `values` in a graph."""
        if self.values.dtype == FP8:
            return onnx_ir.DataType.FLOAT8E4M3FN
        return _TYPES[self.bits, self.zeros is not None]

    def dequantised(self) -> Tensor:
        """[in,out] float32"""
        rows, columns = self.values.shape
        values = self.values.float().reshape(-1, self.group or rows, columns)
        zeros = 0 if self.zeros is None else self.zeros.float()[:, None]
        scales = self.scales.float().reshape(-1, 1, columns)
        return ((values - zeros) * scales).reshape(rows, columns)


@dataclass(frozen=True)
class Scheme:
    """How the matrices of one graph are stored."""

    int4: bool  # where a matrix allows it
    int8: bool  # other matrices
    type: onnx_ir.DataType  # of products, and so of scales
    # TensorRT's products of int8 or fp8, whose other input is rounded to that type too
    both: EightBit | None = None
    # of int4 products, where others are data-free, and of all those of `both`
    choices: Choices = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, graph: GraphName) -> Scheme | None:
        """None if the graph keeps the types of its weights."""
        plans = manifest.backend == "tensorrt"
        return cls.chosen(manifest.precision, manifest.weights, plans, graph)

    @classmethod
    def chosen(
        cls, precision: Precision, weights: Weights | None, plans: bool, graph: GraphName
    ) -> Scheme | None:
        """As `of`. plans: of TensorRT."""
        int4 = weights == "int4" and graph in LANGUAGE
        int8 = weights is not None and not plans
        both = eight_bit(weights) if plans else None
        if graph == "tokens" or not (int4 or int8 or both):
            return None
        return cls(int4, int8, TYPES[precision], both)

    def bits(self, inputs: int, name: str) -> int | None:
        """Of a matrix, by its number of inputs and the name of its parameter; None if it keeps its
        type."""
        if self.int4 and inputs % GROUP == 0 and name not in HEADS:
            return 4
        return 8 if self.int8 or self.both else None

    def quantised(self, matrix: Tensor, name: str) -> Quantised | None:
        """The integers of a matrix [in,out] float, by the name of its parameter; None if it keeps
        its type."""
        bits = self.bits(matrix.shape[0], name)
        if bits is None:
            return None
        if bits == 8:
            return self._eight_bits(matrix, name)
        choice = self.choices.get(name, DATA_FREE)
        kind = SCALE_TYPES[self.type]
        return quantise_int4(choice.folded(matrix), kind, choice.mean_square)

    def _eight_bits(self, matrix: Tensor, name: str) -> Quantised:
        kind = SCALE_TYPES[self.type]
        if not self.both:
            return quantise_int8(matrix, kind)
        return quantise_eight(self.both, self.choices.get(name, DATA_FREE).folded(matrix), kind)

    def ready(self, packed: Mapping[str, PackedWeight]) -> dict[str, Quantised | None]:
        """The integers of a quantised checkpoint, by the names of its parameters.

        Those that an engine cannot hold become int8, which is almost exact: in act-order, or in
        groups that 16 does not divide. TensorRT multiplies only with int4 without zero points; None
        for others, which keep their type there. Its int8 and fp8 products take no groups either.
        """
        return {name: self._ready(weight, name) for name, weight in packed.items()}

    def _ready(self, weight: PackedWeight, name: str) -> Quantised | None:
        if self.both:
            return self._eight_bits(weight.dequantised().T, name)
        scale_type, inputs = SCALE_TYPES[self.type], weight.values.shape[1]
        group = _kernel_group(weight.group)
        if weight.order is not None or inputs % weight.group or group < MIN_GROUP:
            return quantise_int8(weight.dequantised().T, scale_type) if self.int8 else None
        parts = weight.group // group
        scales = weight.scales.to(scale_type).repeat_interleave(parts, dim=1).T.contiguous()
        if weight.is_symmetric:
            if weight.bits == 8 and not self.int8:
                return None
            middle = 2 ** (weight.bits - 1)
            values = (weight.values.T.to(torch.int16) - middle).to(torch.int8)
            return Quantised(values, scales, weight.bits, group)
        if not self.int8:
            return None
        zeros = weight.zeros.repeat_interleave(parts, dim=1).T.contiguous()
        return Quantised(weight.values.T, scales, weight.bits, group, zeros)


def _kernel_group(group: int) -> int:
    """The largest power of two up to 128 that divides a group: kernels take such groups."""
    return min(group & -group, GROUP)


def eight_bit(weights: Weights | None) -> EightBit | None:
    """The type of TensorRT's products with such weights; None if they are of another."""
    return None if weights is None or weights == "int4" else weights


def dequantise_parameters(
    model: nn.Module, scheme: Scheme, ready: Mapping[str, Quantised | None] | None = None
) -> None:
    """Replace in place the matrices of linear layers by what an engine multiplies with. ready: as
    of `compress`."""
    for name, layer in model.named_modules():
        if isinstance(layer, Linear | JoinedLinear):
            weight = f"{name}.weight"
            found = ready or {}
            matrix = found[weight] if weight in found else scheme.quantised(layer.weight.T, weight)
            if matrix:
                exact = nn.Parameter(
                    matrix.dequantised().T.to(SCALE_TYPES[scheme.type]), requires_grad=False
                )
                if isinstance(layer, Linear):
                    layer.weight = exact
                else:
                    layer.weights = nn.ParameterList([exact])


def quantise_int8(weight: Tensor, scale_type: torch.dtype = torch.float32) -> Quantised:
    """weight [in,out] float: symmetric, the scale is max|w| / 127 of a column."""
    scales = weight.abs().amax(0).float() / MAX_INT8
    scales = torch.where(scales > 0, scales, 1).to(scale_type)
    values = torch.empty(weight.shape, dtype=torch.int8)
    for rows in _blocks(weight, 1):
        rounded = (weight[rows].float() / scales.float()).round_()
        values[rows] = rounded.clamp_(-MAX_INT8, MAX_INT8).to(torch.int8)
    return Quantised(values, scales, 8)


def quantise_fp8(weight: Tensor, scale_type: torch.dtype = torch.float32) -> Quantised:
    """weight [in,out] float: E4M3 (arXiv:2209.05433), the scale is max|w| / 448 of a column."""
    scales = weight.abs().amax(0).float() / MAX_FP8
    scales = torch.where(scales > 0, scales, 1).to(scale_type)
    values = torch.empty(weight.shape, dtype=FP8)
    for rows in _blocks(weight, 1):
        exact = weight[rows].float() / scales.float()
        values[rows] = exact.clamp_(-MAX_FP8, MAX_FP8).to(FP8)
    return Quantised(values, scales, 8)


def quantise_eight(kind: EightBit, weight: Tensor, scale_type: torch.dtype) -> Quantised:
    return (quantise_fp8 if kind == "fp8" else quantise_int8)(weight, scale_type)


def quantise_int4(
    weight: Tensor, scale_type: torch.dtype = torch.float32, mean_square: Tensor | None = None
) -> Quantised:
    """weight [in,out] float, in a multiple of 128: symmetric in groups. The weight of the largest
    magnitude would be -8 or, in the next scales tried, beyond; of these the scale with the least
    squared error is taken.

    mean_square: [in] float32, E[x^2] of the inputs. Squared errors are weighted by it: their sum is
    then the expected squared error of an output, if inputs do not correlate."""
    rows, columns = weight.shape
    values = torch.empty((rows, columns), dtype=torch.int8)
    scales = torch.empty((rows // GROUP, columns), dtype=scale_type)
    for block in _blocks(weight, GROUP):
        groups = weight[block].float().reshape(-1, GROUP, columns)
        importance = None if mean_square is None else mean_square[block].reshape(-1, GROUP, 1)
        found, scale = _least_error(groups, scale_type, importance)
        values[block] = found.reshape(-1, columns)
        scales[block.start // GROUP : block.stop // GROUP] = scale
    return Quantised(values, scales, 4, GROUP)


def _least_error(
    groups: Tensor, scale_type: torch.dtype, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """groups [G,128,out] float32, importance [G,128,1] -> their values int8, scales [G,out]."""
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))  # [G,1,out], with its sign
    wanted = torch.where(largest != 0, largest / -MAX_INT4, 1)
    least = torch.full_like(wanted, torch.inf)
    scales = wanted.to(scale_type)
    for ratio in SHRUNK:
        tried = (wanted * ratio).to(scale_type)
        squares = (_rounded(groups, tried) * tried.float() - groups).square_()
        if importance is not None:
            squares *= importance
        error = squares.sum(1, keepdim=True)
        scales = torch.where(error < least, tried, scales)
        least = torch.minimum(error, least)
    return _rounded(groups, scales).to(torch.int8), scales[:, 0]


def _rounded(groups: Tensor, scales: Tensor) -> Tensor:
    return (groups / scales.float()).round_().clamp_(-MAX_INT4, MAX_INT4 - 1)


def _blocks(weight: Tensor, multiple: int) -> Iterator[slice]:
    """Slices of rows of about BLOCK elements, each a multiple of rows."""
    rows, columns = weight.shape
    step = max(BLOCK // (columns * multiple), 1) * multiple
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def compress(
    model: onnx_ir.Model, scheme: Scheme, ready: Mapping[str, Quantised | None] | None = None
) -> dict[str, int]:
    """Replace in place the weights of matrix products by integers or fp8, and their scales.

    ready: by initialiser, the integers of a quantised checkpoint, which are taken as they are; None
    for a matrix that keeps its type. Returns the number of matrices of each type. Raises
    EngineError if the graph does not have one of them, or a product has inputs to be rounded that
    no clip has shown.
    """
    graph, ready = model.graph, ready or {}
    done: dict[tuple[str, bool], onnx_ir.Value | None] = {}
    counts: dict[str, int] = {}
    for node in list(graph):
        weight = _weight_of(node)
        if weight is None:
            continue
        key = weight.name, weight.transposed
        if key not in done:
            matrix = (
                ready[weight.name]
                if weight.name in ready
                else scheme.quantised(weight.matrix, weight.name)
            )
            kind = matrix.kind if matrix else "not quantised"
            counts[kind] = counts.get(kind, 0) + 1
            done[key] = (
                _add_dequantised(graph, node, weight.name, matrix, scheme) if matrix else None
            )
        if factor := done[key]:
            if scheme.both:
                scale = scale_of(scheme.choices, weight.name, scheme.both)
                round_input(graph, node, scale, scheme.both, scheme.type)
            _multiply_by(graph, node, factor)
    if lost := ready.keys() - {name for name, _ in done}:
        raise EngineError(
            f"the graph has no product with {min(lost)} ({len(lost)} are missing), whose integers "
            "the checkpoint has: build without --weights, and report this"
        )
    passes.RemoveUnusedNodesPass()(model)
    return counts


@dataclass(frozen=True)
class _Weight:
    """A constant matrix in a product."""

    name: str  # of the initialiser
    constant: onnx_ir.TensorProtocol
    transposed: bool  # whether the constant is [out,in]

    @property
    def matrix(self) -> Tensor:
        """[in,out]"""
        tensor = as_torch(self.constant)
        return tensor.T if self.transposed else tensor


def _weight_of(node: onnx_ir.Node) -> _Weight | None:
    """The weight of a product, through casts and transpositions; None if the node is no product
    with a constant matrix."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    value = node.inputs[1]
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in ("Cast", "Transpose"):
            return None
        transposed ^= producer.op_type == "Transpose"
        value = producer.inputs[0]
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    return _Weight(value.name or "", value.const_value, transposed)


def _add_dequantised(
    graph: onnx_ir.Graph, node: onnx_ir.Node, name: str, matrix: Quantised, scheme: Scheme
) -> onnx_ir.Value:
    """Add a matrix and its DequantizeLinear before `node`. Returns the result, [in,out]."""
    kind = matrix.stored_type
    parts = [
        _initialiser(graph, f"{name}.values", matrix.values, kind),
        _initialiser(graph, f"{name}.scales", matrix.scales, scheme.type),
    ]
    if matrix.zeros is not None:
        parts.append(_initialiser(graph, f"{name}.zeros", matrix.zeros, kind))
    groups = {} if matrix.group is None else {"block_size": matrix.group}
    axis = 1 if matrix.group is None else 0
    dequantise = onnx_ir.node("DequantizeLinear", parts, {"axis": axis, **groups})
    result = dequantise.outputs[0]
    result.name = f"{name}.dequantised"
    result.dtype = scheme.type
    result.shape = onnx_ir.Shape(matrix.values.shape)
    graph.insert_before(node, dequantise)
    return result


def _multiply_by(graph: onnx_ir.Graph, node: onnx_ir.Node, matrix: onnx_ir.Value) -> None:
    """Let a product take `matrix`, [in,out]. A Gemm becomes MatMul and Add: onnxruntime has no
    Gemm of integer weights."""
    if node.op_type == "MatMul":
        node.replace_input_with(1, matrix)
        return
    attributes = node.attributes
    if (
        attributes.get_int("transA", 0)
        or attributes.get_float("alpha", 1.0) != 1
        or attributes.get_float("beta", 1.0) != 1
    ):
        raise ValueError(f"Gemm {node.name!r} scales or transposes its input")
    product = onnx_ir.node("MatMul", [node.inputs[0], matrix])
    nodes, result = [product], product.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(onnx_ir.node("Add", [result, node.inputs[2]]))
    for each in nodes:
        each.outputs[0].dtype, each.outputs[0].shape = node.outputs[0].dtype, node.outputs[0].shape
    onnx_ir.convenience.replace_nodes_and_values(
        graph, node, [node], nodes, node.outputs, nodes[-1].outputs
    )


def _initialiser(
    graph: onnx_ir.Graph, name: str, tensor: Tensor, kind: onnx_ir.DataType
) -> onnx_ir.Value:
    if kind in _PACKED:
        pairs = (tensor.reshape(-1, 2) & 15).to(torch.uint8)
        packed = (pairs[:, 0] | pairs[:, 1] << 4).numpy()
        constant: onnx_ir.TensorProtocol = onnx_ir.PackedTensor(packed, kind, shape=tensor.shape)
    else:
        constant = tensor_adapters.TorchTensor(tensor.contiguous())
    value = onnx_ir.Value(
        name=name,
        const_value=constant,
        type=onnx_ir.TensorType(kind),
        shape=onnx_ir.Shape(tensor.shape),
    )
    graph.register_initializer(value)
    return value
