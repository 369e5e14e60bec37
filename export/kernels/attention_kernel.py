"""`vicort::BoundedAttention` as a Triton kernel: GQA-packed flash attention (arXiv:2205.14135) over
a paged pool.

`vicort.export.bounded_attention` documents the semantics. One program processes BLOCK_M of the
rows * GROUP query vectors that share a KV head, ordered by row, then query head, so one tile of
keys and values serves all of them for any group size. It reads its share of the tokens, first
cached ones through the table, then new ones, and rotates keys after loading them. With more than
one share, `combine` merges the partial results (flash decoding).
"""

import triton
import triton.language as tl

from vicort.export.kernels.rotary import rotation, turn

# below any score, and finite: rows without a visible token so far have no NaN
LOWEST = tl.constexpr(-1e30)


@triton.jit
def update(
    query_1,
    query_2,
    key_1,
    key_2,
    value,
    visible,
    scale,
    highest,
    total,
    mixed,
    PRECISION: tl.constexpr,
):
    """Add one tile to the online softmax. Halves of queries [M,D/2] and of keys [D/2,N], values
    [N,D]; visible broadcasts to [M,N]."""
    score = tl.dot(query_1, key_1, input_precision=PRECISION)
    score = tl.dot(query_2, key_2, score, input_precision=PRECISION) * scale
    score = tl.where(visible, score, float("-inf"))
    now_highest = tl.maximum(highest, tl.max(score, 1))
    weight = tl.exp2(score - now_highest[:, None])
    fade = tl.exp2(highest - now_highest)
    total = total * fade + tl.sum(weight, 1)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * fade[:, None], input_precision=PRECISION)
    return now_highest, total, mixed


@triton.jit
def bounded_attention(
    q,  # [rows,kv_heads*GROUP,D]
    k,  # [rows,kv_heads,D]
    v,
    pos,  # [rows,3] int32
    segment,  # [rows] int32
    until,  # [rows] int32
    # the layer's first cell: [P] slots of `slot_cells` cells [2,PAGE,D]; the layer's cells, one
    # per head, come first
    pool,
    scales,  # with INT8: as the pool, cells of [2,PAGE] float32
    # the layer's first position: [P] slots of `where_slot` int32, heads `where_head` apart (0:
    # shared), each [PAGE,3]
    where,
    # the layer's slots: segments `table_segment` apart, heads `table_head` apart (0: shared), each
    # [pages] int32
    table,
    out,  # [rows,kv_heads*GROUP,D]
    # float32, of S shares: mixed [S,rows*kv_heads*GROUP,D], highest score [S,…], sum of weights
    # [S,…]; unused when S = 1
    partial,
    rotary,
    rows,
    pages,
    segments,
    slot_cells,
    where_slot,
    where_head,
    table_segment,
    table_head,
    scale,  # of the scores, times log2(e)
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INT8: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    scale = tl.cast(scale, tl.float32)  # PyTorch's compiler passes a double
    head, kv_heads = tl.program_id(1), tl.num_programs(1)
    share, shares = tl.program_id(2), tl.num_programs(2)
    half, dim = tl.arange(0, HALF), tl.arange(0, D)

    first = tl.program_id(0) * BLOCK_M
    packed = first + tl.arange(0, BLOCK_M)
    row = packed // GROUP
    # which of the query vectors [rows*Hq]
    vector = (row * kv_heads + head) * GROUP + packed % GROUP
    inside = row < rows
    query_t = tl.load(pos + row * 3, mask=inside, other=-1)
    real = query_t >= 0
    its_segment = tl.load(segment + row, mask=real, other=-1)
    query_h = tl.load(pos + row * 3 + 1, mask=real, other=0)
    query_w = tl.load(pos + row * 3 + 2, mask=real, other=0)
    query_cos, query_sin = rotation(
        tl.where(real, query_t, 0)[:, None],
        query_h[:, None],
        query_w[:, None],
        rotary,
        half[None, :],
        SECTION_T,
        SECTION_H,
        INTERLEAVED,
        POSITIONS,
        HALF,
    )
    query = q + vector[:, None] * D + half[None, :]
    query_1, query_2 = turn(
        tl.load(query, mask=real[:, None], other=0.0),
        tl.load(query + HALF, mask=real[:, None], other=0.0),
        query_cos,
        query_sin,
    )

    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, D], tl.float32)

    # the cached tokens of the segments that this tile's rows are of, one segment after another
    lowest = tl.maximum(tl.min(tl.where(real, its_segment, segments)), 0)
    cached = (
        tl.maximum(tl.minimum(tl.max(its_segment), segments - 1) + 1 - lowest, 0) * pages * PAGE
    )
    tiles = tl.cdiv(cached, BLOCK_N)
    step = tl.cdiv(tiles + tl.cdiv(rows, BLOCK_N), shares)  # tiles in a share
    for start in tl.range(
        share * step * BLOCK_N, tl.minimum(cached, (share + 1) * step * BLOCK_N), BLOCK_N
    ):
        token = start + tl.arange(0, BLOCK_N)
        entry = token // PAGE
        theirs = lowest + entry // pages
        named_by = table + theirs * table_segment + head * table_head + entry % pages
        slot = tl.load(named_by, mask=token < cached, other=-1)
        named = slot >= 0
        place = where + slot.to(tl.int64) * where_slot + head * where_head + token % PAGE * 3
        t = tl.load(place, mask=named, other=-1)
        filled = t >= 0
        h = tl.load(place + 1, mask=filled, other=0)
        w = tl.load(place + 2, mask=filled, other=0)
        cos, sin = rotation(
            tl.where(filled, t, 0)[None, :],
            h[None, :],
            w[None, :],
            rotary,
            half[:, None],
            SECTION_T,
            SECTION_H,
            INTERLEAVED,
            POSITIONS,
            HALF,
        )
        stored = (slot.to(tl.int64) * slot_cells + head) * (2 * PAGE) + token % PAGE
        key = pool + stored[None, :] * D + half[:, None]
        first_half = tl.load(key, mask=filled[None, :], other=0)
        second_half = tl.load(key + HALF, mask=filled[None, :], other=0)
        value = tl.load(
            pool + (stored[:, None] + PAGE) * D + dim[None, :], mask=filled[:, None], other=0
        )
        if INT8:
            key_scale = tl.load(scales + stored, mask=filled, other=0.0)[None, :]
            value_scale = tl.load(scales + stored + PAGE, mask=filled, other=0.0)[:, None]
            first_half = first_half.to(tl.float32) * key_scale
            second_half = second_half.to(tl.float32) * key_scale
            value = (value.to(tl.float32) * value_scale).to(query_1.dtype)
        key_1, key_2 = turn(first_half, second_half, cos, sin)
        key_1, key_2 = key_1.to(query_1.dtype), key_2.to(query_1.dtype)
        highest, total, mixed = update(
            query_1,
            query_2,
            key_1,
            key_2,
            value,
            filled[None, :] & (theirs[None, :] == its_segment[:, None]),
            scale,
            highest,
            total,
            mixed,
            PRECISION,
        )

    # no query of this tile sees a row from here on
    end = tl.minimum(rows, (first + BLOCK_M - 1) // GROUP + 1)
    # the first tile of new tokens in this share; negative if cached ones come first
    new = share * step - tiles
    for start in tl.range(
        tl.maximum(new, 0) * BLOCK_N, tl.minimum(end, (new + step) * BLOCK_N), BLOCK_N
    ):
        other = start + tl.arange(0, BLOCK_N)
        t = tl.load(pos + other * 3, mask=other < end, other=-1)
        filled = t >= 0
        h = tl.load(pos + other * 3 + 1, mask=filled, other=0)
        w = tl.load(pos + other * 3 + 2, mask=filled, other=0)
        cos, sin = rotation(
            tl.where(filled, t, 0)[None, :],
            h[None, :],
            w[None, :],
            rotary,
            half[:, None],
            SECTION_T,
            SECTION_H,
            INTERLEAVED,
            POSITIONS,
            HALF,
        )
        cell = (other * kv_heads + head) * D
        key = k + cell[None, :] + half[:, None]
        key_1, key_2 = turn(
            tl.load(key, mask=filled[None, :], other=0.0),
            tl.load(key + HALF, mask=filled[None, :], other=0.0),
            cos,
            sin,
        )
        value = tl.load(v + cell[:, None] + dim[None, :], mask=filled[:, None], other=0.0)
        hidden_from = tl.load(until + other, mask=filled, other=0)
        visible = (other[None, :] <= row[:, None]) & (row[:, None] < hidden_from[None, :])
        highest, total, mixed = update(
            query_1, query_2, key_1, key_2, value, visible, scale, highest, total, mixed, PRECISION
        )

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
        vectors = rows * kv_heads * GROUP
        mine = share.to(tl.int64) * vectors + vector
        tl.store(partial + mine[:, None] * D + dim[None, :], mixed, mask=inside[:, None])
        tail = partial + shares.to(tl.int64) * vectors * D
        tl.store(tail + mine, highest, mask=inside)
        tl.store(tail + shares.to(tl.int64) * vectors + mine, total, mask=inside)


@triton.jit
def combine(
    partial,  # as bounded_attention left it
    out,  # [vectors,D]
    vectors,
    shares,
    D: tl.constexpr,
    BLOCK: tl.constexpr,  # shares read at a time
):
    """Merge the partial results of all shares for one query vector."""
    vector = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, D)
    tail = partial + tl.cast(shares, tl.int64) * vectors * D + vector
    highest = LOWEST
    total = 0.0
    mixed = tl.zeros([D], tl.float32)
    for start in tl.range(0, shares, BLOCK):
        share = start + tl.arange(0, BLOCK)
        there = share < shares
        offset = share.to(tl.int64) * vectors
        their_highest = tl.load(tail + offset, mask=there, other=LOWEST)
        their_total = tl.load(
            tail + tl.cast(shares, tl.int64) * vectors + offset, mask=there, other=0.0
        )
        theirs = tl.load(
            partial + (offset + vector)[:, None] * D + dim[None, :], mask=there[:, None], other=0.0
        )
        now_highest = tl.maximum(highest, tl.max(their_highest, 0))
        fade = tl.exp2(highest - now_highest)
        weight = tl.exp2(their_highest - now_highest)
        total = total * fade + tl.sum(their_total * weight, 0)
        mixed = mixed * fade + tl.sum(theirs * weight[:, None], 0)
        highest = now_highest
    result = tl.where(total > 0, mixed / total, 0.0)
    tl.store(out + vector * D + dim, result.to(out.dtype.element_ty))
