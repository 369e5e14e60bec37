"""Kernels that write tokens and positions into the pool between two runs of the language engine."""

import triton
import triton.language as tl


@triton.jit
def scatter_tokens(
    k,  # [L,rows,HEADS,D]
    v,
    slots,  # [n] int32; -1: the token is not written
    cells,  # [n] int32
    pool,  # [P,L,HEADS,2,PAGE,D]
    rows,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,  # a power of two that is not below HEADS
    PAGE: tl.constexpr,
):
    """Write keys and values of new token n of layer l to their cell; grid (n, L)."""
    token, layer, layers = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    slot = tl.load(slots + token).to(tl.int64)
    cell = tl.load(cells + token)
    head, dim = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, D)[None, :]
    there = head < tl.where(slot >= 0, HEADS, 0)
    source = ((layer.to(tl.int64) * rows + token) * HEADS + head) * D + dim
    target = pool + ((slot * layers + layer) * HEADS + head) * (2 * PAGE * D) + cell * D + dim
    tl.store(target, tl.load(k + source, mask=there, other=0.0), mask=there)
    tl.store(target + PAGE * D, tl.load(v + source, mask=there, other=0.0), mask=there)


@triton.jit
def set_places(
    slots,  # [n] int32; -1: none
    places,  # [n,PAGE,3] int32
    where,  # [P,1,1,PAGE,3] int32
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two that is not below 3 * PAGE
):
    """Write the positions of all tokens of page n; grid (n,)."""
    page = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + page).to(tl.int64)
    number = tl.arange(0, BLOCK)
    there = number < tl.where(slot >= 0, 3 * PAGE, 0)
    tl.store(
        where + slot * (3 * PAGE) + number,
        tl.load(places + page * (3 * PAGE) + number, mask=there, other=0),
        mask=there,
    )
