"""The vision encoder over some tokens of each unit: patches of pruned tokens are neither embedded
nor attended to.

CodecFlow (arXiv:2604.06036) prunes whole tokens, groups of merge*merge patches, before the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vicort.export.qwen2_5_vl.vision import (
    HIDDEN,
    DynamicVisionEncoder,
    VisionAttention,
    VisionBlock,
    VisionEncoder,
    VisionLayers,
    attend,
    rotary_at,
    rotate,
)
from vicort.runtime.vision_windows import patches_of, window_of


class PrunedLayers(nn.Module):
    """The pass of an encoder, which it shares, over some tokens of each unit."""

    def __init__(self, encoder: VisionLayers):
        super().__init__()
        self.encoder = encoder

    def encode(self, x: Tensor, cos: Tensor, sin: Tensor, window: Tensor, filled: Tensor) -> Tensor:
        """x: [U,G*m,width] embedded patches of the tokens, m = merge*merge; cos, sin:
        [U,G*m,head_dim]; window: [U,G] of each token; filled: [U,G], False = no token ->
        [U,G,width of a visual token], zeros where there is no token."""
        everywhere, in_window = self.biases(window, filled)
        for index, block in enumerate(self.encoder.blocks):
            bias = everywhere if index in self.encoder.config.full_attention else in_window
            x = run_block(block, x, cos, sin, bias)
        features = self.encoder.merger(x).reshape(*filled.shape, -1)
        return torch.where(filled[:, :, None], features, torch.zeros_like(features))

    def biases(self, window: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Added to the scores of full attention [U,1,1,G*m] and of attention within windows
        [U,1,G*m,G*m]."""
        patches = self.encoder.config.merge**2
        apart = (window[:, :, None] != window[:, None, :]) | ~filled[:, None, :]
        in_window = (
            (apart.float() * HIDDEN).repeat_interleave(patches, 1).repeat_interleave(patches, 2)
        )
        everywhere = ((~filled).float() * HIDDEN).repeat_interleave(patches, 1)
        return everywhere[:, None, None], in_window[:, None]


class PrunedVisionEncoder(PrunedLayers):
    """Shares weights, positions and windows with an encoder. With all tokens kept the output is
    equal."""

    encoder: VisionEncoder

    def __init__(self, encoder: VisionEncoder):
        super().__init__(encoder)
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
        x = self.encoder.patch_embed(self.gathered(frames, token))
        cos, sin = (
            table[token].reshape(kept.shape[0], -1, table.shape[-1])
            for table in (self.cos, self.sin)
        )
        return self.encode(x, cos, sin, self.window[token], filled)

    def gathered(self, frames: Tensor, token: Tensor) -> Tensor:
        """Pixels [U,G*merge*merge,2*patch*patch*3] of the patches of tokens [U,G]."""
        pixels = self.encoder.patches(frames)  # [U,S,…]
        units, patches, size = pixels.shape
        first = torch.arange(units, device=token.device) * patches
        rows = (self.patches[token].reshape(units, -1) + first[:, None]).reshape(-1)
        return pixels.reshape(-1, size).index_select(0, rows).reshape(units, -1, size)


class DynamicPrunedEncoder(PrunedLayers):
    """For every image size: what depends on the size is an input, of `pruned_grid_inputs`."""

    encoder: DynamicVisionEncoder

    def forward(
        self,
        frames: Tensor,
        kept: Tensor,
        token_segments: Tensor,
        token_places: Tensor,
        token_windows: Tensor,
    ) -> Tensor:
        """frames: [2U,P*m*patch,patch*3] uint8 RGB, the segments of [2U,height,width,3]; kept: as
        in `PrunedVisionEncoder`; token_segments: [P,m*patch], token_places: [P,m,2],
        token_windows: [P], all int32, as `pruned_grid_inputs` describes them -> [U,G,width] as in
        `PrunedVisionEncoder`."""
        filled = kept >= 0
        token = kept.clamp(min=0).long()
        pixels = self.encoder.patches(frames, token_segments[token].flatten(1))
        places = token_places[token].flatten(1, 2)  # [U,G*m,2]
        cos, sin = rotary_at(places[..., 0], places[..., 1], self.encoder.config.head_dim)
        x = self.encoder.patch_embed(pixels)
        return self.encode(x, cos, sin, token_windows[token], filled)


def pruned(encoder: VisionEncoder | DynamicVisionEncoder) -> PrunedLayers:
    """The same encoder over some tokens of each unit."""
    if isinstance(encoder, VisionEncoder):
        return PrunedVisionEncoder(encoder)
    return DynamicPrunedEncoder(encoder)


def run_block(block: VisionBlock, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    """A block of the encoder over x [U,S,width], with `bias` added to the attention scores."""
    x = x + attend_over(block.attn, block.norm1(x), cos, sin, bias)
    return x + block.mlp(block.norm2(x))


def attend_over(
    attention: VisionAttention, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
) -> Tensor:
    """x: [U,S,width]; cos, sin: [U,S,head_dim]; bias: [U,1,S or 1,S] -> [U,S,width]."""
    units, patches, width = x.shape
    heads, head_dim = attention.heads, attention.head_dim
    q, k, v = attention.qkv(x).reshape(units, patches, 3, heads, head_dim).unbind(2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mixed = attend(q, k, v, bias, attention.fused)  # [U,heads,S,head_dim]
    return attention.proj(mixed.transpose(1, 2).reshape(units, patches, width))
