"""The vision encoder over some tokens of each unit: patches of pruned tokens are neither embedded
nor attended to.

CodecFlow (arXiv:2604.06036) prunes whole tokens, groups of merge*merge patches, before the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vicort.export.qwen2_5_vl.vision import (
    HIDDEN,
    VisionAttention,
    VisionBlock,
    VisionEncoder,
    rotate,
)
from vicort.export.qwen2_5_vl.windows import patches_of, window_of


class PrunedVisionEncoder(nn.Module):
    """Shares weights, positions and windows with an encoder. With all tokens kept the output is
    equal."""

    def __init__(self, encoder: VisionEncoder):
        super().__init__()
        self.encoder = encoder
        config = encoder.config
        rows, columns = (
            encoder.image_height // config.token_pixels,
            encoder.image_width // config.token_pixels,
        )
        patches = patches_of(torch.arange(rows * columns).numpy(), columns, config.merge).reshape(
            -1, config.merge**2
        )
        in_token_order = (encoder.grid_tokens, config.merge**2, config.head_dim)
        # [P,merge*merge]
        self.register_buffer("patches", torch.from_numpy(patches), persistent=False)
        # [P]
        self.register_buffer(
            "window",
            torch.from_numpy(window_of(rows, columns, config.window_tokens)),
            persistent=False,
        )
        self.register_buffer(
            "cos", encoder.cos.reshape(in_token_order)[encoder.reverse], persistent=False
        )
        self.register_buffer(
            "sin", encoder.sin.reshape(in_token_order)[encoder.reverse], persistent=False
        )

    def forward(self, frames: Tensor, kept: Tensor) -> Tensor:
        """frames: [2U,height,width,3] uint8 RGB; kept: [U,G] int32, distinct indices of tokens in
        the row-major grid, -1 = none -> [U,G,width] of the model's dtype, in that order, zeros for
        -1."""
        filled = kept >= 0
        token = kept.clamp(min=0).long()
        units, groups = kept.shape
        x = self.encoder.patch_embed(self.gathered(frames, token))
        cos, sin = (
            table[token].reshape(units, -1, table.shape[-1]) for table in (self.cos, self.sin)
        )
        everywhere, in_window = self.biases(token, filled)
        for index, block in enumerate(self.encoder.blocks):
            bias = everywhere if index in self.encoder.config.full_attention else in_window
            x = run_block(block, x, cos, sin, bias)
        features = self.encoder.merger(x).reshape(units, groups, -1)
        return torch.where(filled[:, :, None], features, torch.zeros_like(features))

    def gathered(self, frames: Tensor, token: Tensor) -> Tensor:
        """Pixels [U,G*merge*merge,2*patch*patch*3] of the patches of tokens [U,G]."""
        pixels = self.encoder.patches(frames)  # [U,S,…]
        units, patches, size = pixels.shape
        first = torch.arange(units, device=token.device) * patches
        rows = (self.patches[token].reshape(units, -1) + first[:, None]).reshape(-1)
        return pixels.reshape(-1, size).index_select(0, rows).reshape(units, -1, size)

    def biases(self, token: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Added to the scores of full attention [U,1,1,G*m] and of attention within windows
        [U,1,G*m,G*m], m = merge*merge."""
        patches, window = self.encoder.config.merge**2, self.window[token]
        apart = (window[:, :, None] != window[:, None, :]) | ~filled[:, None, :]
        in_window = (
            (apart.float() * HIDDEN).repeat_interleave(patches, 1).repeat_interleave(patches, 2)
        )
        everywhere = ((~filled).float() * HIDDEN).repeat_interleave(patches, 1)
        return everywhere[:, None, None], in_window[:, None]


def run_block(block: VisionBlock, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    """A block of the encoder over x [U,S,width], with `bias` added to the attention scores."""
    x = x + attend(block.attn, block.norm1(x), cos, sin, bias)
    return x + block.mlp(block.norm2(x))


def attend(attention: VisionAttention, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    """x: [U,S,width]; cos, sin: [U,S,head_dim]; bias: [U,1,S or 1,S] -> [U,S,width]."""
    units, patches, width = x.shape
    heads, head_dim = attention.heads, attention.head_dim
    q, k, v = attention.qkv(x).reshape(units, patches, 3, heads, head_dim).unbind(2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).float() * head_dim**-0.5 + bias  # [U,heads,S,S]
    return attention.proj(
        (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(units, patches, width)
    )
