"""The layers that the vision encoder and the language model share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu


class Linear(nn.Linear):
    """A linear layer whose weight may be of another type than its input, which it is cast to."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias)


class JoinedLinear(nn.Module):
    """One product whose weight is several parts beside one another. They stay apart in memory, as a
    checkpoint's files are mapped: a graph stores them as one (`graphs.join_weights`)."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None = None, axis: int = 0):
        """weights: parts [out,in], joined along `axis`; bias: [out of all parts]."""
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(each, requires_grad=False) for each in weights)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.axis = axis

    @property
    def weight(self) -> Tensor:
        """[out,in], a copy."""
        return torch.cat(list(self.weights), self.axis)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias)


class SharedInput(nn.Module):
    """A layer that begins with several products of one input. They are separate as a checkpoint
    has them; `combine` in combined_products.py makes one product of them."""

    parts: ClassVar[tuple[str, ...]]  # names of the linear layers

    def __init__(self) -> None:
        super().__init__()
        self.joined: JoinedLinear | Linear | None = None
        self.outputs: tuple[int, ...] = ()  # of each part in `joined`

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [...,in] -> [...,out] of each part."""
        if self.joined is None:
            return tuple(getattr(self, name)(x) for name in self.parts)
        return self.joined(x).split(self.outputs, dim=-1)


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv:1910.07467) over the last axis, computed in float32."""

    def __init__(self, width: int, epsilon: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * exact.to(x.dtype)


class SwiGLU(SharedInput):
    """Gated feed-forward layer (arXiv:2002.05202)."""

    parts = ("gate_proj", "up_proj")

    def __init__(self, width: int, intermediate: int, bias: bool, padded: int | None = None):
        """padded: the intermediate width that `combine` fills up to, with zeros."""
        super().__init__()
        self.padded = padded or intermediate
        self.gate_proj = Linear(width, intermediate, bias=bias)
        self.up_proj = Linear(width, intermediate, bias=bias)
        self.down_proj: Linear | JoinedLinear = Linear(intermediate, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.project(x)
        return self.down_proj(silu(gate) * up)
