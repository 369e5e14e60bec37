"""The inputs of TensorRT's int8 and fp8 products: rounded to that type, as the weights are.

A product has one scale for all its input, which a calibration clip gives: max|x| / 127 of int8,
max|x| / 448 of fp8 (E4M3, arXiv:2209.05433). TensorRT takes no scale for each input channel, and
none that is found while it runs, but for types that only its newest GPUs have.
"""

from __future__ import annotations

from typing import Literal

import onnx_ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor, nn

from vicort.export.product_choice import DATA_FREE, Choices
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.runtime.errors import EngineError

EightBit = Literal["int8", "fp8"]
FP8 = torch.float8_e4m3fn
MAX_INT8, MAX_FP8 = 127, 448.0
LARGEST: dict[EightBit, float] = {"int8": MAX_INT8, "fp8": MAX_FP8}
TORCH_TYPES: dict[EightBit, torch.dtype] = {"int8": torch.int8, "fp8": FP8}
ONNX_TYPES: dict[EightBit, onnx_ir.DataType] = {
    "int8": onnx_ir.DataType.INT8,
    "fp8": onnx_ir.DataType.FLOAT8E4M3FN,
}


def scale_of(choices: Choices, weight: str, kind: EightBit) -> float:
    """The scale of a product's input, by the name of its weight: a number that bfloat16 holds, so
    that it is the same in both precisions. Raises EngineError if no clip has shown the input."""
    largest = choices.get(weight, DATA_FREE).largest
    if largest is None:
        raise EngineError(
            f"the calibration has no inputs of the product with {weight}: name another clip with "
            "--calibration, and report this if it does not help"
        )
    scale = (largest.float() / LARGEST[kind]).bfloat16().item()
    return scale if scale > 0 else 1.0


def rounded(x: Tensor, scale: float, kind: EightBit) -> Tensor:
    """x, as a product takes it: of the nearest numbers of the type, of x's own type."""
    steps = x.float() / scale
    if kind == "int8":
        whole = steps.round().clamp(-MAX_INT8 - 1, MAX_INT8)
    else:
        whole = steps.clamp(-MAX_FP8, MAX_FP8).to(FP8).float()
    return (whole * scale).to(x.dtype)


def round_inputs(model: nn.Module, choices: Choices, kind: EightBit) -> None:
    """Let the linear layers of a model round their inputs as an engine does, in place. Raises
    EngineError as `scale_of`."""
    for name, layer in model.named_modules():
        if isinstance(layer, Linear | JoinedLinear):
            scale = scale_of(choices, f"{name}.weight", kind)
            layer.register_forward_pre_hook(
                lambda _, inputs, scale=scale: (rounded(inputs[0], scale, kind),)
            )


def round_input(
    graph: onnx_ir.Graph, node: onnx_ir.Node, scale: float, kind: EightBit, type: onnx_ir.DataType
) -> None:
    """Let a product take its first input through QuantizeLinear and DequantizeLinear. scale: as
    `scale_of` gives it; type: of the product.

    The input is rounded in float32: in bfloat16, steps next to the largest one would be half a step
    apart. Products of one input share what is added.
    """
    x = node.inputs[0]
    if x is None:
        raise ValueError(f"{node.name!r} has no input")
    stem = f"{x.name}.{kind}.{scale:.9g}"
    exact = _constant(graph, f"{stem}.step", torch.tensor(scale))
    zero = _constant(graph, f"{stem}.zero", torch.zeros((), dtype=TORCH_TYPES[kind]))
    shared = next((use.node for use in exact.uses()), None)
    if shared is not None:
        (again,) = [use.node for use in shared.outputs[0].uses()]
        node.replace_input_with(0, again.outputs[0])
        return
    nodes, value = [], x
    if type != onnx_ir.DataType.FLOAT:
        nodes.append(onnx_ir.node("Cast", [x], {"to": onnx_ir.DataType.FLOAT}))
        value = _named(nodes[-1], f"{stem}.exact", onnx_ir.DataType.FLOAT, x)
    nodes.append(onnx_ir.node("QuantizeLinear", [value, exact, zero]))
    value = _named(nodes[-1], f"{stem}.values", ONNX_TYPES[kind], x)
    step = exact
    if type != onnx_ir.DataType.FLOAT:
        step = _constant(graph, f"{stem}.scale", torch.tensor(scale).bfloat16())
    nodes.append(onnx_ir.node("DequantizeLinear", [value, step]))
    value = _named(nodes[-1], f"{stem}.rounded", type, x)
    graph.insert_before(node, nodes)
    node.replace_input_with(0, value)


def _named(
    node: onnx_ir.Node, name: str, type: onnx_ir.DataType, like: onnx_ir.Value
) -> onnx_ir.Value:
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, type, like.shape
    return result


def _constant(graph: onnx_ir.Graph, name: str, tensor: Tensor) -> onnx_ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    constant = tensor_adapters.TorchTensor(tensor, name=name)
    value = onnx_ir.Value(
        name=name,
        const_value=constant,
        type=onnx_ir.TensorType(constant.dtype),
        shape=onnx_ir.Shape(tensor.shape),
    )
    graph.register_initializer(value)
    return value
