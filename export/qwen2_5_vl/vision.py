"""The vision encoder of Qwen2.5-VL (arXiv:2502.13923): frames -> visual tokens. The units of a
chunk are a batch; they do not attend to each other.

Parameters have their Hugging Face names without the prefix `visual.`, except `patch_embed`, which
is a linear layer over the pixels of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from vicort.export.qwen2_5_vl.configuration import VisionConfiguration
from vicort.export.qwen2_5_vl.layers import Linear, RMSNorm, SwiGLU
from vicort.export.qwen2_5_vl.windows import Windows, arrange
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError

THETA = 10000.0  # base of the 2-D rotary frequencies
HIDDEN = -1e30  # bias of masked scores


class VisionEncoder(nn.Module):
    """For one image size. Raises ConfigError if it is no multiple of a visual token's pixels."""

    def __init__(
        self, config: VisionConfiguration, width: int, image_height: int, image_width: int
    ):
        """width: of the visual tokens; image_height, image_width: pixels."""
        super().__init__()
        step = config.token_pixels
        for name, pixels in (("height", image_height), ("width", image_width)):
            if pixels < step or pixels % step:
                raise ConfigError(
                    f"image {name} {pixels} is not allowed: give a multiple of {step} pixels "
                    "with --image-size WxH"
                )
        self.config = config
        self.image_height = image_height
        self.image_width = image_width
        windows = arrange(
            image_height // step, image_width // step, config.merge, config.window_tokens
        )
        self.grid_tokens = len(windows.tokens)

        self.patch_embed = Linear(UNIT_FRAMES * config.patch**2 * 3, config.width, bias=False)
        self.blocks = nn.ModuleList(
            VisionBlock(config, None if i in config.full_attention else windows)
            for i in range(config.depth)
        )
        self.merger = Merger(config, width)

        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")
            for values in (config.mean, config.std)
        )
        # [patch*3], columns of a patch's row
        self.register_buffer("gain", (1 / (255 * std)).repeat(config.patch), persistent=False)
        self.register_buffer("shift", (-mean / std).repeat(config.patch), persistent=False)
        self.register_buffer("order", torch.from_numpy(windows.patches), persistent=False)
        self.register_buffer("reverse", torch.from_numpy(windows.tokens), persistent=False)
        cos, sin = rotary_tables(windows, image_width // config.patch, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: [2U,height,width,3] uint8 RGB -> [U,P,width] of the model's dtype, tokens
        row-major over the token grid."""
        x = self.patch_embed(self.patches(frames)).index_select(1, self.order)  # [U,S,width]
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.merger(x).index_select(1, self.reverse)

    def patches(self, frames: Tensor) -> Tensor:
        """Normalised pixels [U,S,2*patch*patch*3], patches row-major; in a patch: frame, row,
        column, channel."""
        patch = self.config.patch
        rows, columns = self.image_height // patch, self.image_width // patch
        # Cast before the transposition: TensorRT does not transpose uint8. A patch's row and
        # channels stay one axis: TensorRT supports at most eight.
        pixels = (
            frames.float().reshape(-1, UNIT_FRAMES, rows, patch, columns, patch * 3) * self.gain
            + self.shift
        )
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(
            -1, rows * columns, UNIT_FRAMES * patch * patch * 3
        )
        return pixels.to(self.merger.ln_q.weight.dtype)  # matrices may be of another type


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfiguration, windows: Windows | None):
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = VisionAttention(config, windows)
        self.norm2 = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, config.intermediate, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class VisionAttention(nn.Module):
    """Attention within windows, or over the whole unit if `windows` is None."""

    def __init__(self, config: VisionConfiguration, windows: Windows | None):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.windows = windows.count if windows else 1
        self.padded = windows is not None and not windows.whole
        if windows is not None and self.padded:
            self.register_buffer("gather", torch.from_numpy(windows.gather), persistent=False)
            self.register_buffer("scatter", torch.from_numpy(windows.scatter), persistent=False)
            empty = torch.from_numpy(~windows.filled)[:, None, None]
            # [W,1,1,K]
            self.register_buffer(
                "bias",
                torch.zeros(empty.shape, device="cpu").masked_fill(empty, HIDDEN),
                persistent=False,
            )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [U,S,width]; cos, sin: [S,head_dim] -> [U,S,width]."""
        places, width = x.shape[1:]
        q, k, v = self.qkv(x).reshape(-1, places, 3, self.heads, self.head_dim).unbind(2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.padded:
            q, k, v = (tensor.index_select(1, self.gather) for tensor in (q, k, v))
        cells = q.shape[1]
        q, k, v = (
            t.reshape(-1, self.windows, cells // self.windows, self.heads, self.head_dim).transpose(
                2, 3
            )
            for t in (q, k, v)
        )
        scores = (q @ k.transpose(-1, -2)).float() * self.head_dim**-0.5  # [U,W,heads,K,K]
        if self.padded:
            scores = scores + self.bias
        mixed = (scores.softmax(-1).to(v.dtype) @ v).transpose(2, 3).reshape(-1, cells, width)
        if self.padded:
            mixed = mixed.index_select(1, self.scatter)
        return self.proj(mixed)


class Merger(nn.Module):
    """Concatenates the merge*merge patches of a token and projects them to one visual token."""

    def __init__(self, config: VisionConfiguration, width: int):
        super().__init__()
        self.merged = config.width * config.merge**2
        self.ln_q = RMSNorm(config.width)
        self.mlp = nn.ModuleDict(
            {"0": Linear(self.merged, self.merged), "2": Linear(self.merged, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """[U,S,width] -> [U,P,width of a visual token]."""
        tokens = self.ln_q(x).reshape(-1, x.shape[1] * x.shape[2] // self.merged, self.merged)
        return self.mlp["2"](gelu(self.mlp["0"](tokens)))


def rotary_tables(windows: Windows, columns: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [S,head_dim] of the 2-D rotary embedding (arXiv:2409.12191): a quarter of the
    head rotates with the patch's row, the next with its column, and both again in the other half.
    columns: of the patch grid."""
    y, x = (torch.from_numpy(place).float() for place in divmod(windows.patches, columns))
    exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device="cpu") / (
        head_dim // 2
    )
    frequency = 1.0 / THETA**exponent  # [head_dim/4]
    angle = torch.cat([y[:, None] * frequency, x[:, None] * frequency], dim=-1).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [U,S,heads,D]; cos, sin: [S,D], or [U,S,D] -> of x's dtype, computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x.float() * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)
