"""The layers that the vision encoder and the language model share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu


class Linear(nn.Linear):
    """A linear layer whose weight may be of another type than its input, which it is cast to."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias)


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


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv:2002.05202)."""

    def __init__(self, width: int, intermediate: int, bias: bool):
        super().__init__()
        self.gate_proj = Linear(width, intermediate, bias=bias)
        self.up_proj = Linear(width, intermediate, bias=bias)
        self.down_proj = Linear(intermediate, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
