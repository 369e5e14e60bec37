"""Kernels that write tokens and positions into the pool between two runs of the language engine."""

import triton
import triton.language as tl

from vicort.export.kernels.rotary import ROUNDER

# as vicort.runtime.devices.int8_vectors has them
LARGEST = tl.constexpr(127.0)
MIN_SCALE = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def quantised(x):
    """Vectors [HEADS_BLOCK,D] as q, int8, and scales [HEADS_BLOCK] float32: the very bits of
    vicort.runtime.devices.int8_vectors."""
    wide = x.to(tl.float32)
    size = tl.where(wide == wide, tl.abs(wide), float("inf"))
    scale = tl.div_rn(tl.max(size, 1), LARGEST)
    scale = tl.where(scale < MIN_SCALE, 0.0, scale)
    usable = (scale > 0) & (scale < float("inf"))
    divisor = tl.where(usable, scale, 1.0)
    number = tl.div_rn(tl.where(usable[:, None], wide, 0.0), divisor[:, None])
    return ((number + ROUNDER) - ROUNDER).to(tl.int32).to(tl.int8), scale


@triton.jit
def scatter_tokens(
    k,  # [L,rows,HEADS,D]
    v,
    slots,  # [n] int32; -1: the token is not written
    cells,  # [n] int32
    pool,  # [P,L,HEADS,2,PAGE,D]
    scales,  # with INT8: [P,L,HEADS,2,PAGE] float32
    rows,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,  # a power of two that is not below HEADS
    PAGE: tl.constexpr,
    INT8: tl.constexpr,
):
    """Write keys and values of new token n of layer l to their cell; grid (n, L). With INT8 they
    are quantised."""
    token, layer, layers = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    slot = tl.load(slots + token).to(tl.int64)
    cell = tl.load(cells + token)
    head, dim = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, D)[None, :]
    there = head < tl.where(slot >= 0, HEADS, 0)
    source = ((layer.to(tl.int64) * rows + token) * HEADS + head) * D + dim
    # of the key, in vectors
    first = ((slot * layers + layer) * HEADS + tl.arange(0, HEADS_BLOCK)) * (2 * PAGE) + cell
    target = pool + first[:, None] * D + dim
    key = tl.load(k + source, mask=there, other=0.0)
    value = tl.load(v + source, mask=there, other=0.0)
    if INT8:
        real = tl.arange(0, HEADS_BLOCK) < tl.where(slot >= 0, HEADS, 0)
        key, key_scale = quantised(key)
        value, value_scale = quantised(value)
        tl.store(scales + first, key_scale, mask=real)
        tl.store(scales + first + PAGE, value_scale, mask=real)
    tl.store(target, key, mask=there)
    tl.store(target + PAGE * D, value, mask=there)


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
