"""The vision encoder of Qwen2.5-VL (arXiv:2502.13923): frames -> visual tokens. The units of a
chunk are a batch; they do not attend to each other.

Parameters have their Hugging Face names without the prefix `visual.`, except `patch_embed`, which
is a linear layer over the pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from vicort.export.qwen2_5_vl.configuration import VisionConfiguration
from vicort.export.qwen2_5_vl.layers import Linear, RMSNorm, SwiGLU
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.vision_windows import Windows, arrange

THETA = 10000.0  # base of the 2-D rotary frequencies
HIDDEN = -1e30  # bias of masked scores


@dataclass(frozen=True)
class Cells:
    """The attention windows. Without `gather` all of them are full, and patches are in their
    order."""

    windows: int  # W
    gather: Tensor | None = None  # [W*K]: patch of each cell
    scatter: Tensor | None = None  # [S]: cell of each patch
    bias: Tensor | None = None  # [W,1,1,K]: HIDDEN for empty cells


ONE_WINDOW = Cells(1)


class VisionLayers(nn.Module):
    """The weights of the encoder, and its pass over patches in window order."""

    def __init__(self, config: VisionConfiguration, width: int):
        """width: of the visual tokens."""
        super().__init__()
        self.config = config
        self.patch_embed = Linear(UNIT_FRAMES * config.patch**2 * 3, config.width, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = Merger(config, width)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")
            for values in (config.mean, config.std)
        )
        # [patch*3], columns of a patch's row
        self.register_buffer("gain", (1 / (255 * std)).repeat(config.patch), persistent=False)
        self.register_buffer("shift", (-mean / std).repeat(config.patch), persistent=False)

    def encode(self, x: Tensor, cos: Tensor, sin: Tensor, cells: Cells) -> Tensor:
        """x: [U,S,width] embedded patches; cos, sin: [S,head_dim] -> [U,P,width of a visual
        token], all in window order."""
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, ONE_WINDOW if index in self.config.full_attention else cells)
        return self.merger(x)


class VisionEncoder(VisionLayers):
    """For one image size. Raises ConfigError if it is no multiple of a visual token's pixels."""

    def __init__(
        self, config: VisionConfiguration, width: int, image_height: int, image_width: int
    ):
        """width: of the visual tokens; image_height, image_width: pixels."""
        super().__init__(config, width)
        step = config.token_pixels
        for name, pixels in (("height", image_height), ("width", image_width)):
            if pixels < step or pixels % step:
                raise ConfigError(
                    f"image {name} {pixels} is not allowed: give a multiple of {step} pixels "
                    "with --image-size WxH"
                )
        self.image_height = image_height
        self.image_width = image_width
        windows = arrange(
            image_height // step, image_width // step, config.merge, config.window_tokens
        )
        self.grid_tokens = len(windows.tokens)
        self.register_buffer("order", torch.from_numpy(windows.patches), persistent=False)
        self.register_buffer("reverse", torch.from_numpy(windows.tokens), persistent=False)
        cos, sin = rotary_tables(windows, image_width // config.patch, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.windows, self.padded = windows.count, not windows.whole
        if self.padded:
            self.register_buffer("gather", torch.from_numpy(windows.gather), persistent=False)
            self.register_buffer("scatter", torch.from_numpy(windows.scatter), persistent=False)
            empty = torch.from_numpy(~windows.filled)[:, None, None]
            bias = torch.zeros(empty.shape, device="cpu").masked_fill(empty, HIDDEN)
            self.register_buffer("bias", bias, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: [2U,height,width,3] uint8 RGB -> [U,P,width] of the model's dtype, tokens
        row-major over the token grid."""
        x = self.patch_embed(self.patches(frames)).index_select(1, self.order)  # [U,S,width]
        cells = Cells(self.windows)
        if self.padded:
            cells = Cells(self.windows, self.gather, self.scatter, self.bias)
        return self.encode(x, self.cos, self.sin, cells).index_select(1, self.reverse)

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


class DynamicVisionEncoder(VisionLayers):
    """For every image size. What depends on the size is an input: index arrays of `grid_inputs`.

    Height and width do not appear: a frame is a list of segments, each the pixels of one row of one
    patch, which lie side by side in memory.
    """

    def forward(
        self,
        frames: Tensor,
        segments: Tensor,
        places: Tensor,
        windows: Tensor,
        cells: Tensor,
        row_major: Tensor,
    ) -> Tensor:
        """frames: [2U,S*patch,patch*3] uint8 RGB, the segments of [2U,height,width,3]. segments:
        [S*patch], places: [S,2], windows: [W,K], cells: [S], row_major: [P], all int32, as
        `grid_inputs` describes them -> [U,P,width] of the model's dtype, tokens row-major."""
        x = self.patch_embed(self.patches(frames, segments[None]))
        cos, sin = rotary_at(places[:, 0], places[:, 1], self.config.head_dim)
        bias = (windows < 0).float()[:, None, None] * HIDDEN
        gather = windows.clamp(min=0).reshape(-1)
        cut = Cells(windows.shape[0], gather, cells, bias)
        return self.encode(x, cos, sin, cut).index_select(1, row_major)

    def patches(self, frames: Tensor, segments: Tensor) -> Tensor:
        """Normalised pixels [U,n,2*patch*patch*3] of the patches with segments [U|1,n*patch]; in a
        patch: frame, row, column, channel."""
        patch, (count, of_frame, row) = self.config.patch, frames.shape
        first = torch.arange(count, device=frames.device, dtype=torch.int32) * of_frame
        index = segments.reshape(segments.shape[0], -1, 1, patch)
        index = index + first.reshape(-1, 1, UNIT_FRAMES, 1)  # [U,n,2,patch]
        # Cast before the selection: TensorRT selects no uint8. All frames are one list of segments:
        # TensorRT for RTX needs 64 GiB to build a selection along the second axis of large frames.
        pixels = frames.float().reshape(-1, row).index_select(0, index.reshape(-1))
        pixels = (pixels * self.gain + self.shift).reshape(
            count // UNIT_FRAMES, -1, UNIT_FRAMES * patch * row
        )
        return pixels.to(self.merger.ln_q.weight.dtype)


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfiguration):
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = VisionAttention(config)
        self.norm2 = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, config.intermediate, True, config.padded_intermediate)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cells: Cells) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, cells)
        return x + self.mlp(self.norm2(x))


class VisionAttention(nn.Module):
    """Attention within windows; one window is the whole unit."""

    def __init__(self, config: VisionConfiguration):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.fused = False

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, windows: Cells) -> Tensor:
        """x: [U,S,width]; cos, sin: [S,head_dim] -> [U,S,width]."""
        units, places, width = x.shape
        q, k, v = self.qkv(x).reshape(-1, places, 3, self.heads, self.head_dim).unbind(2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if windows.gather is not None:
            cells = windows.gather.shape[0]
            q, k, v = (select(t, windows.gather) for t in (q, k, v))
        else:
            cells = places
        q, k, v = (  # [U*W,heads,K,head_dim]: kernels of attention take four axes
            t.reshape(-1, cells // windows.windows, self.heads, self.head_dim).transpose(1, 2)
            for t in (q, k, v)
        )
        bias = windows.bias
        if bias is not None:
            bias = bias.expand(units, *bias.shape).reshape(-1, *bias.shape[1:])
        mixed = attend(q, k, v, bias, self.fused).transpose(1, 2).reshape(-1, cells, width)
        if windows.scatter is not None:
            mixed = select(mixed, windows.scatter)
        return self.proj(mixed)


def select(x: Tensor, places: Tensor) -> Tensor:
    """[U,n,...] of x [U,S,...], by places [n] of S.

    All units are one list: TensorRT for RTX needs 64 GiB to build a selection along the second axis
    of large frames.
    """
    units, count = x.shape[:2]
    first = torch.arange(units, device=x.device, dtype=places.dtype) * count
    rows = (first[:, None] + places).reshape(-1)
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, (units, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, fused: bool) -> Tensor:
    """Attention of q, k, v [B,heads,S,head_dim]; bias: [B,1,S or 1,S] float32, added to the scores.

    fused: as one operation, for compilers that have a kernel for it and do not find it by
    themselves. Softmax is computed in float32 either way.
    """
    if fused:
        mask = None if bias is None else bias.to(q.dtype)
        return scaled_dot_product_attention(q, k, v, mask)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v


def fuse_attention(encoder: VisionLayers) -> None:
    """From now on, export attention as one operation."""
    for block in encoder.blocks:
        block.attn.fused = True


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
    """cos and sin [S,head_dim] of all patches. columns: of the patch grid."""
    y, x = (torch.from_numpy(place) for place in divmod(windows.patches, columns))
    return rotary_at(y, x, head_dim)


def rotary_at(y: Tensor, x: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [...,head_dim] of the 2-D rotary embedding (arXiv:2409.12191) of patches at rows
    y and columns x [...]: a quarter of the head rotates with the row, the next with the column, and
    both again in the other half."""
    exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=y.device) / (
        head_dim // 2
    )
    frequency = 1.0 / THETA**exponent  # [head_dim/4]
    half = torch.cat([place.float()[..., None] * frequency for place in (y, x)], dim=-1)
    angle = torch.cat([half, half], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [U,S,heads,D]; cos, sin: [S,D], or [U,S,D] -> of x's dtype, computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x.float() * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)
