"""`vicort::BoundedAttention` as a torch operator: attention over the pages in a table and,
causally, over the new tokens.

This is the reference implementation that every other form of the op is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NAME = "vicort::bounded_attention"
# score of masked tokens: finite, so that a row without any visible token has no NaN
HIDDEN = -1e30


def rotate(x: Tensor, positions: Tensor, sections: Sequence[int], theta: float) -> Tensor:
    """Multimodal rotary embedding (Qwen2-VL, arXiv:2409.12191; RoFormer, arXiv:2104.09864), in
    float32.

    x: [..., D]; positions: [..., 3] integers (t, h, w), of x's shape up to broadcasting. Frequency
    i of D/2 is theta^(-2i/D); its angle is that of t, h or w, by the section of `sections` that i
    is in; it rotates the pair (x[i], x[i + D/2]).
    """
    half = x.shape[-1] // 2
    number = torch.arange(half, device=x.device)
    exponent = number.float() / half
    # without a constant tensor, so that it can be traced
    axis = (number >= sections[0]).long() + (number >= sections[0] + sections[1])
    angle = positions[..., axis].float() * (1.0 / theta**exponent)
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    pool: Tensor,
    where: Tensor,
    table: Tensor,
    layer: int,
    scale: float,
    sections: Sequence[int],
    theta: float,
) -> Tensor:
    """Attention of new tokens over the pages in `table` and over each other.

    q: [C,Hq,D], k and v: [C,Hkv,D], float: the new tokens, not rotated. pos: [C,3] int32, (t, h, w)
    of each new token; a negative t marks a padding row. pool: [P,L,Hkv,2,T,D] float: cell (slot,
    layer, head) holds T keys, not rotated, then T values. where: [P,L|1,Hkv|1,T,3] int32, (t, h, w)
    of each cached token; a negative t marks an empty cell. table: [L|1,Hkv|1,N] int32, slots of
    the pool to read; -1 = none. layer: which layer of the pool; scale: of the scores; sections:
    three ints that sum to D/2; theta: base of the rotary frequencies.

    Returns [C,Hq,D] of q's dtype. A new token attends to the cached tokens, to itself and to the
    new tokens of earlier rows that are not padding. Empty cells and padding rows are never attended
    to, even if they contain NaN. The output of a padding row is zero. Products and softmax are
    in float32.
    """
    (rows, query_heads, dim), heads = q.shape, k.shape[1]
    real = pos[:, 0] >= 0  # [C]
    cached_k, cached_v, filled = _cached(pool, where, table, layer, sections, theta)

    place = pos[:, None]  # [C,1,3]
    new_q = rotate(torch.where(real[:, None, None], q, 0), place, sections, theta).transpose(0, 1)
    new_k = rotate(torch.where(real[:, None, None], k, 0), place, sections, theta).transpose(0, 1)
    new_v = torch.where(real[:, None, None], v, 0).float().transpose(0, 1)

    keys = torch.cat([cached_k, new_k], dim=1)  # [Hkv,N*T+C,D]
    values = torch.cat([cached_v, new_v], dim=1)
    causal = torch.ones(rows, rows, dtype=torch.bool, device=q.device).tril() & real
    # [Hkv,C,N*T+C]
    visible = torch.cat(
        [filled[:, None].expand(-1, rows, -1), causal.expand(heads, -1, -1)], dim=-1
    )

    grouped = new_q.reshape(heads, query_heads // heads, rows, dim)
    scores = (grouped @ keys[:, None].transpose(-1, -2)) * scale
    weights = scores.masked_fill(~visible[:, None], HIDDEN).softmax(dim=-1)
    out = (weights @ values[:, None]).reshape(query_heads, rows, dim).transpose(0, 1)
    return torch.where(real[:, None, None], out, 0).to(q.dtype).contiguous()


def _cached(
    pool: Tensor, where: Tensor, table: Tensor, layer: int, sections: Sequence[int], theta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated keys [Hkv,N*T,D], values [Hkv,N*T,D] and which of them are filled [Hkv,N*T] bool, of
    the pages in one layer's table."""
    head = torch.arange(pool.shape[2], device=pool.device)
    slots = table[min(layer, table.shape[0] - 1), head.clamp(max=table.shape[1] - 1)]  # [Hkv,N]
    safe = slots.clamp(min=0).long()
    kv = pool[safe, layer, head[:, None]]  # [Hkv,N,2,T,D]
    # [Hkv,N,T,3]
    places = where[
        safe, min(layer, where.shape[1] - 1), head.clamp(max=where.shape[2] - 1)[:, None]
    ]
    filled = (places[..., 0] >= 0) & (slots >= 0)[..., None]  # [Hkv,N,T]
    kv = torch.where(filled[:, :, None, :, None], kv, 0)
    keys = rotate(kv[:, :, 0], places, sections, theta)
    return keys.flatten(1, 2), kv[:, :, 1].float().flatten(1, 2), filled.flatten(1)


bounded_attention = torch.library.custom_op(NAME, attend, mutates_args=())


@bounded_attention.register_fake
def _(q, k, v, pos, pool, where, table, layer, scale, sections, theta):
    return q.new_empty(q.shape)
