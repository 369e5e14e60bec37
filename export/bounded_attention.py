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


def rotate(
    x: Tensor,
    positions: Tensor,
    sections: Sequence[int],
    theta: float,
    interleaved: bool = False,
) -> Tensor:
    """Multimodal rotary embedding (Qwen2-VL, arXiv:2409.12191; RoFormer, arXiv:2104.09864), in
    float32.

    x: [..., D]; positions: [..., 3] integers (t, h, w), of x's shape up to broadcasting. Frequency
    i of D/2 is theta^(-2i/D); its angle is that of t, h or w, which `rotary_axis` chooses; it
    rotates the pair (x[i], x[i + D/2]).
    """
    half = x.shape[-1] // 2
    number = torch.arange(half, device=x.device)
    exponent = number.float() / half
    axis = rotary_axis(number, sections, interleaved)
    angle = positions[..., axis].float() * (1.0 / theta**exponent)
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_axis(number: Tensor, sections: Sequence[int], interleaved: bool) -> Tensor:
    """Which of t, h and w (0, 1, 2) turns the frequencies with these numbers.

    Contiguous: sections[0] frequencies of t, then those of h, then those of w (Qwen2-VL).
    Interleaved: t, h, w, t, h, w, … until h and w have had theirs, then t (Qwen3-VL).
    """
    # without a constant tensor, so that it can be traced
    if not interleaved:
        return (number >= sections[0]).long() + (number >= sections[0] + sections[1])
    in_h = (number % 3 == 1) & (number < 3 * sections[1])
    in_w = (number % 3 == 2) & (number < 3 * sections[2])
    return in_h.long() + 2 * in_w


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    segment: Tensor,
    until: Tensor,
    pool: Tensor,
    where: Tensor,
    table: Tensor,
    scales: Tensor | None,
    layer: int,
    scale: float,
    sections: Sequence[int],
    theta: float,
    interleaved: bool = False,
) -> Tensor:
    """Attention of new tokens over the pages in `table` and over each other.

    q: [C,Hq,D], k and v: [C,Hkv,D], float: the new tokens, not rotated. pos: [C,3] int32, (t, h, w)
    of each new token; a negative t marks a padding row. segment: [C] int32, 0 to S-1: which table a
    new token reads. until: [C] int32, the first row after those that see a new token, more than its
    own row; C or more = all later rows do. So the rows of a question are a block, and those of a
    tree of texts, each node before what continues it, are blocks within blocks. pool:
    [P,L,Hkv,2,T,D] float, or int8 with `scales`: cell (slot, layer, head) holds T keys, not
    rotated, then T values. where: [P,L|1,Hkv|1,T,3] int32, (t, h, w) of each cached token; a
    negative t marks an empty cell. table: [S,L|1,Hkv|1,N] int32, for each segment the slots of the
    pool to read; -1 = none. scales: None, or [P,L,Hkv,2,T] float32: the keys and values of a cached
    token are those of the pool times its scale. layer: which layer of the pool; scale: of the
    scores; sections: three ints that sum to D/2; theta: base of the rotary frequencies;
    interleaved: how axes are assigned to them, see `rotary_axis`.

    Returns [C,Hq,D] of q's dtype. A new token attends to the cached tokens of its segment's table,
    to itself, and to the new tokens of earlier rows that are not padding and whose `until` is after
    its own row. Empty cells and padding rows are never attended to, even if they contain NaN. The
    output of a padding row is zero. Products and softmax are in float32.
    """
    (rows, query_heads, dim), heads = q.shape, k.shape[1]
    real = pos[:, 0] >= 0  # [C]
    turning = (sections, theta, interleaved)
    slots, places, filled = _pages(where, table, layer, heads)
    cached_k, cached_v = _cells(pool, scales, slots, layer, filled)
    cached_k = rotate(cached_k, places, *turning)

    place = pos[:, None]  # [C,1,3]
    new_q = rotate(torch.where(real[:, None, None], q, 0), place, *turning).transpose(0, 1)
    new_k = rotate(torch.where(real[:, None, None], k, 0), place, *turning).transpose(0, 1)
    new_v = torch.where(real[:, None, None], v, 0).float().transpose(0, 1)

    keys = torch.cat([cached_k.flatten(1, 3), new_k], dim=1)  # [Hkv,S*N*T+C,D]
    values = torch.cat([cached_v.flatten(1, 3), new_v], dim=1)
    mine = segment[:, None] == torch.arange(table.shape[0], device=q.device)  # [C,S]
    cached = (filled[:, None] & mine[None, :, :, None, None]).flatten(2)  # [Hkv,C,S*N*T]
    causal = torch.ones(rows, rows, dtype=torch.bool, device=q.device).tril() & real
    causal = causal & (torch.arange(rows, device=q.device)[:, None] < until)
    visible = torch.cat([cached, causal.expand(heads, -1, -1)], dim=-1)  # [Hkv,C,S*N*T+C]

    grouped = new_q.reshape(heads, query_heads // heads, rows, dim)
    scores = (grouped @ keys[:, None].transpose(-1, -2)) * scale
    weights = scores.masked_fill(~visible[:, None], HIDDEN).softmax(dim=-1)
    out = (weights @ values[:, None]).reshape(query_heads, rows, dim).transpose(0, 1)
    return torch.where(real[:, None, None], out, 0).to(q.dtype).contiguous()


def _pages(where: Tensor, table: Tensor, layer: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the pages in one layer's tables: slots [Hkv,S,N], at least 0, positions [Hkv,S,N,T,3] of
    their tokens, and which cells are filled, [Hkv,S,N,T] bool."""
    head = torch.arange(heads, device=table.device)
    slots = table[:, min(layer, table.shape[1] - 1), head.clamp(max=table.shape[2] - 1)]
    slots = slots.transpose(0, 1)  # [Hkv,S,N]
    safe = slots.clamp(min=0).long()
    head = head.clamp(max=where.shape[2] - 1)[:, None, None]
    places = where[safe, min(layer, where.shape[1] - 1), head]
    return safe, places, (places[..., 0] >= 0) & (slots >= 0)[..., None]


def _cells(
    pool: Tensor, scales: Tensor | None, slots: Tensor, layer: int, filled: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys, not rotated, and values of one layer's pages, [Hkv,S,N,T,D] float32 each; zero where
    no token is."""
    head = torch.arange(len(slots), device=slots.device)[:, None, None]
    kv = pool[slots, layer, head].float()  # [Hkv,S,N,2,T,D]
    if scales is not None:
        kv = kv * scales[slots, layer, head].unsqueeze(-1)
    kv = torch.where(filled[:, :, :, None, :, None], kv, 0)
    return kv[:, :, :, 0], kv[:, :, :, 1]


bounded_attention = torch.library.custom_op(NAME, attend, mutates_args=())


@bounded_attention.register_fake
def _(
    q,
    k,
    v,
    pos,
    segment,
    until,
    pool,
    where,
    table,
    scales,
    layer,
    scale,
    sections,
    theta,
    interleaved=False,
):
    return q.new_empty(q.shape)
