"""`vicort::BoundedAttention` as a pair of Triton kernels, for many new rows.

The kernel of `vicort.export.kernels.attention_kernel` rotates each key again for every tile of
queries that reads it. Here `rotate_tokens` rotates keys and queries once, into contiguous scratch
memory, and `rotated_attention` is plain flash attention (arXiv:2205.14135) over it. Which of the
two is launched is decided by `vicort.runtime.kernels.Kernels.plan`.

The scratch memory, for each KV head, in the type of the queries:

    queries [rows*GROUP, rounded up to BLOCK_M, D], ordered by row, then query head
    keys, values [tokens,D]: of each segment's table its cells, then the new rows; each of these
                             parts is rounded up to BLOCK_N tokens, with zeros where none is
    bias [cached tokens] float32: 0, or -inf where there is no token
"""

import triton
import triton.language as tl

from vicort.export.kernels.attention_kernel import LOWEST
from vicort.export.kernels.rotary import rotation, turn


@triton.jit
def rotate_tokens(
    q,  # [rows,kv_heads*GROUP,D]
    k,  # [rows,kv_heads,D]
    v,
    pos,  # [rows,3] int32
    pool,  # from here to `table` as of bounded_attention
    scales,
    where,
    table,
    queries,  # scratch memory, heads `query_head`, `key_head` and `cached` apart
    keys,
    values,
    bias,
    rotary,
    rows,
    pages,
    slot_cells,
    where_slot,
    where_head,
    table_segment,
    table_head,
    segment_tokens,  # pages * PAGE, rounded up to BLOCK_N
    cached,  # segments * segment_tokens
    new_tokens,  # rows, rounded up to BLOCK_N
    vectors,  # rows * GROUP, rounded up to BLOCK_M
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INT8: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,  # divides BLOCK_M and BLOCK_N
):
    """Fill the scratch memory; grid ((cached + new_tokens + vectors) / BLOCK, kv_heads)."""
    HALF: tl.constexpr = D // 2
    head, kv_heads = tl.program_id(1), tl.num_programs(1)
    half = tl.arange(0, HALF)
    first = tl.program_id(0) * BLOCK
    token = first + tl.arange(0, BLOCK)
    target = ((head.to(tl.int64) * (cached + new_tokens) + token) * D)[:, None]
    if first < cached:
        cell = token % segment_tokens
        there = cell < pages * PAGE
        named_by = (
            table + token // segment_tokens * table_segment + head * table_head + cell // PAGE
        )
        slot = tl.load(named_by, mask=there, other=-1)
        named = slot >= 0
        place = where + slot.to(tl.int64) * where_slot + head * where_head + cell % PAGE * 3
        t = tl.load(place, mask=named, other=-1)
        filled = t >= 0
        stored = (slot.to(tl.int64) * slot_cells + head) * (2 * PAGE) + cell % PAGE
        source = pool + (stored * D)[:, None]
        if INT8:
            key_scale = tl.load(scales + stored, mask=filled, other=0.0)
            value_scale = tl.load(scales + stored + PAGE, mask=filled, other=0.0)
        else:
            key_scale = 1.0
            value_scale = 1.0
        rotate(
            source, keys + target, place, t, filled, key_scale, rotary, half,
            D, SECTION_T, SECTION_H, INTERLEAVED, INT8, POSITIONS,
        )  # fmt: skip
        copy(source + PAGE * D, values + target, filled, value_scale, D, INT8)
        tl.store(bias + head.to(tl.int64) * cached + token, tl.where(filled, 0.0, float("-inf")))
    elif first < cached + new_tokens:
        row = token - cached
        place = pos + row * 3
        t = tl.load(place, mask=row < rows, other=-1)
        filled = t >= 0
        source = ((row * kv_heads + head) * D)[:, None]
        rotate(
            k + source, keys + target, place, t, filled, 1.0, rotary, half,
            D, SECTION_T, SECTION_H, INTERLEAVED, False, POSITIONS,
        )  # fmt: skip
        copy(v + source, values + target, filled, 1.0, D, False)
    else:
        packed = token - cached - new_tokens
        row = packed // GROUP
        place = pos + row * 3
        t = tl.load(place, mask=row < rows, other=-1)
        vector = (row * kv_heads + head) * GROUP + packed % GROUP
        rotate(
            q + (vector * D)[:, None],
            queries + ((head.to(tl.int64) * vectors + packed) * D)[:, None],
            place, t, t >= 0, 1.0, rotary, half,
            D, SECTION_T, SECTION_H, INTERLEAVED, False, POSITIONS,
        )  # fmt: skip


@triton.jit
def rotate(
    source,  # [N,1] pointers to vectors [D]
    target,
    place,  # [N] pointers to (t, h, w)
    t,  # [N], of them
    filled,  # [N]: others become zeros
    factor,  # [N], or 1
    rotary,
    half,  # numbers below D/2
    D: tl.constexpr,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SCALED: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Write vectors, rotated by their positions."""
    HALF: tl.constexpr = D // 2
    h = tl.load(place + 1, mask=filled, other=0)
    w = tl.load(place + 2, mask=filled, other=0)
    cos, sin = rotation(
        tl.where(filled, t, 0)[:, None],
        h[:, None],
        w[:, None],
        rotary,
        half[None, :],
        SECTION_T,
        SECTION_H,
        INTERLEAVED,
        POSITIONS,
        HALF,
    )
    first = tl.load(source + half[None, :], mask=filled[:, None], other=0)
    second = tl.load(source + HALF + half[None, :], mask=filled[:, None], other=0)
    if SCALED:
        first = first.to(tl.float32) * factor[:, None]
        second = second.to(tl.float32) * factor[:, None]
    first, second = turn(first, second, cos, sin)
    tl.store(target + half[None, :], first.to(target.dtype.element_ty))
    tl.store(target + HALF + half[None, :], second.to(target.dtype.element_ty))


@triton.jit
def copy(source, target, filled, factor, D: tl.constexpr, SCALED: tl.constexpr):
    """Write vectors as they are, arguments as of `rotate`."""
    dim = tl.arange(0, D)[None, :]
    value = tl.load(source + dim, mask=filled[:, None], other=0)
    if SCALED:
        value = value.to(tl.float32) * factor[:, None]
    tl.store(target + dim, value.to(target.dtype.element_ty))


@triton.jit
def rotated_attention(
    queries,  # scratch memory, as rotate_tokens left it
    keys,
    values,
    bias,
    pos,  # [rows,3] int32
    segment,  # [rows] int32
    until,  # [rows] int32
    out,  # [rows,kv_heads*GROUP,D]
    partial,  # as of bounded_attention
    rows,
    segments,
    segment_tokens,  # as of rotate_tokens
    cached,
    new_tokens,
    vectors,
    scale,  # of the scores, times log2(e)
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid, shares and results are those of bounded_attention."""
    scale = tl.cast(scale, tl.float32)  # PyTorch's compiler passes a double
    head, kv_heads = tl.program_id(1), tl.num_programs(1)
    share, shares = tl.program_id(2), tl.num_programs(2)
    dim = tl.arange(0, D)

    first = tl.program_id(0) * BLOCK_M
    packed = first + tl.arange(0, BLOCK_M)
    row = packed // GROUP
    vector = (row * kv_heads + head) * GROUP + packed % GROUP
    inside = row < rows
    real = tl.load(pos + row * 3, mask=inside, other=-1) >= 0
    its_segment = tl.load(segment + row, mask=real, other=-1)
    query = tl.load(queries + ((head.to(tl.int64) * vectors + packed) * D)[:, None] + dim[None, :])
    tokens = head.to(tl.int64) * (cached + new_tokens)
    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, D], tl.float32)

    # the cached tokens of the segments that this tile's rows are of, one segment after another
    lowest = tl.maximum(tl.min(tl.where(real, its_segment, segments)), 0)
    theirs = tl.maximum(tl.minimum(tl.max(its_segment), segments - 1) + 1 - lowest, 0)
    tiles = theirs * (segment_tokens // BLOCK_N)
    end = tl.minimum(rows, (first + BLOCK_M - 1) // GROUP + 1)  # of the rows that any query sees
    step = tl.cdiv(tiles + tl.cdiv(rows, BLOCK_N), shares)  # tiles in a share
    begin = lowest * segment_tokens
    column = tl.arange(0, BLOCK_N)
    cell = tl.arange(0, BLOCK_N)[:, None] * D + dim[None, :]
    key_tile = keys + (tokens + begin) * D
    value_tile = values + (tokens + begin) * D
    bias_tile = bias + head.to(tl.int64) * cached + begin
    for tile in tl.range(share * step, tl.minimum(tiles, (share + 1) * step)):
        start = tile * BLOCK_N
        key = tl.load(key_tile + start * D + cell)
        hidden = tl.load(bias_tile + start + column)
        value = tl.load(value_tile + start * D + cell)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + hidden[None, :]
        # a tile is of one segment: rows of others get weights of zero, whatever the scores
        sees = (begin + start) // segment_tokens == its_segment
        now_highest = tl.where(sees, tl.maximum(highest, tl.max(score, 1)), highest)
        weight = tl.exp2(score - tl.where(sees, now_highest, float("inf"))[:, None])
        fade = tl.exp2(highest - now_highest)
        total = total * fade + tl.sum(weight, 1)
        mixed = tl.dot(
            weight.to(value.dtype), value, mixed * fade[:, None], input_precision=PRECISION
        )
        highest = now_highest

    # the first tile of new tokens in this share; negative if cached ones come first
    from_tile = share * step - tiles
    key_tile = keys + (tokens + cached) * D
    value_tile = values + (tokens + cached) * D
    for start in tl.range(
        tl.maximum(from_tile, 0) * BLOCK_N,
        tl.minimum(end, (from_tile + step) * BLOCK_N),
        BLOCK_N,
        num_stages=1,
    ):
        other = start + column
        key = tl.load(key_tile + start * D + cell)
        value = tl.load(value_tile + start * D + cell)
        filled = tl.load(pos + other * 3, mask=other < end, other=-1) >= 0
        hidden_from = tl.load(until + other, mask=filled, other=0)
        visible = (other[None, :] <= row[:, None]) & (row[:, None] < hidden_from[None, :])
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where(visible, score, float("-inf"))
        now_highest = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - now_highest[:, None])
        fade = tl.exp2(highest - now_highest)
        total = total * fade + tl.sum(weight, 1)
        mixed = tl.dot(
            weight.to(value.dtype), value, mixed * fade[:, None], input_precision=PRECISION
        )
        highest = now_highest

    total = tl.where(real, total, 0.0)
    if shares == 1:
        # NaN, where a real row holds one, is in `mixed`
        fraction = tl.where(total > 0, 1.0 / total, 0.0)
        result = tl.where(real[:, None], mixed * fraction[:, None], 0.0)
        tl.store(
            out + vector[:, None] * D + dim[None, :],
            result.to(out.dtype.element_ty),
            mask=inside[:, None],
        )
    else:
        every = rows * kv_heads * GROUP
        mine = share.to(tl.int64) * every + vector
        tl.store(partial + mine[:, None] * D + dim[None, :], mixed, mask=inside[:, None])
        tail = partial + shares.to(tl.int64) * every * D
        tl.store(tail + mine, highest, mask=inside)
        tl.store(tail + shares.to(tl.int64) * every + mine, total, mask=inside)
