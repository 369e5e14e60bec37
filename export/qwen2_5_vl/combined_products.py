"""Fewer and larger matrix products: those of one input become one, and widths are filled up.

The results are the same: each output is the product of the same row, and what is added is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear, SharedInput, SwiGLU
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight

Packed = dict[str, PackedWeight]  # by parameter name


def combine(model: nn.Module, packed: Packed | None = None, copies: bool = False) -> None:
    """Let each layer of a loaded model begin with one product, in place.

    packed: the integers of a quantised checkpoint, of which those of a combined product are joined.
    Where its parts are stored in different ways, the parts of that layer stay separate products.
    copies: join weights in memory now, for tools that would join them in each run. Otherwise none
    is copied, but for biases and the integers of one product at a time.
    """
    found = {} if packed is None else packed
    for name, layer in model.named_modules():
        if isinstance(layer, SharedInput) and _is_alike(layer, name, found):
            _combine(layer, name, found, copies)


def _is_alike(layer: SharedInput, name: str, packed: Packed) -> bool:
    """Whether no part is packed, or all are in the same way."""
    weights = [packed.get(f"{name}.{part}.weight") for part in layer.parts]
    first, *others = weights
    if first is None:
        return not any(others)
    return all(other is not None and _same_layout(first, other) for other in others)


def _same_layout(one: PackedWeight, other: PackedWeight) -> bool:
    if one.order is None or other.order is None:
        same_order = one.order is other.order
    else:
        same_order = torch.equal(one.order, other.order)
    return (
        same_order
        and (one.bits, one.group) == (other.bits, other.group)
        and one.is_symmetric == other.is_symmetric
    )


def _combine(layer: SharedInput, name: str, packed: Packed, copies: bool) -> None:
    parts = [getattr(layer, part) for part in layer.parts]
    integers = [packed.pop(f"{name}.{part}.weight", None) for part in layer.parts]
    if joined := [each for each in integers if each is not None]:
        packed[f"{name}.joined.weight"] = _joined_integers(joined)
    extra = layer.padded - parts[0].out_features if isinstance(layer, SwiGLU) else 0
    rows = [row for part in parts for row in (part.weight, *_zeros(part.weight, extra, 0))]
    biases = [row for part in parts for row in (part.bias, *_zeros(part.bias, extra, 0))]
    layer.outputs = tuple(part.out_features + extra for part in parts)
    layer.joined = _product(rows, None if biases[0] is None else torch.cat(biases), 0, copies)
    for part in layer.parts:
        delattr(layer, part)
    if isinstance(layer, SwiGLU) and extra:
        down = layer.down_proj
        columns = [down.weight, *_zeros(down.weight, extra, 1)]
        layer.down_proj = _product(columns, down.bias, 1, copies)


def _zeros(like: Tensor | None, count: int, axis: int) -> list[Tensor]:
    """`count` more rows or columns of a weight or bias; none if there is no such tensor."""
    if like is None or not count:
        return []
    shape = list(like.shape)
    shape[axis] = count
    return [torch.zeros(shape, dtype=like.dtype, device=like.device)]


def _product(
    weights: Sequence[Tensor], bias: Tensor | None, axis: int, copies: bool
) -> Linear | JoinedLinear:
    kind = reduce(torch.promote_types, (each.dtype for each in weights))
    joined = JoinedLinear([each.detach().to(kind) for each in weights], bias, axis)
    if not copies:
        return joined
    weight = joined.weight
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = joined.bias
    return layer


def _joined_integers(parts: Sequence[PackedWeight]) -> PackedWeight:
    first = parts[0]
    values, scales, zeros = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("values", "scales", "zeros")
    )
    return PackedWeight(values, scales, zeros, first.group, first.bits, first.order)
