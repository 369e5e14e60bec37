"""Multimodal rotary embedding inside a kernel: cos and sin of the angles, and the rotation of a
tile."""

import triton
import triton.language as tl

# pi/2 in two float32 parts (Cody and Waite, Software Manual for the Elementary Functions, 1980).
# With a fused multiply-add the first subtraction is exact for angles below 2^18 = 262,144. The two
# parts differ from pi/2 by 1e-15.
TWO_OVER_PI = tl.constexpr(0.636619772367581343)
HALF_PI_HIGH = tl.constexpr(1.57079637050628662109375)
HALF_PI_LOW = tl.constexpr(-4.37113900018624283e-8)
# 1.5 * 2^23: adding and subtracting it rounds a float32 to the integer in its low bits
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def cos_sin(angle):
    """cos and sin of angles in [0, 2^18) radian, float32, with an absolute error of 2e-7 and
    without a slow path. Polynomials from Cephes."""
    shifted = tl.fma(angle, TWO_OVER_PI, ROUNDER)
    turns = shifted - ROUNDER  # quarter turns
    quadrant = shifted.to(tl.int32, bitcast=True)
    rest = tl.fma(turns, -HALF_PI_HIGH, angle)
    rest = tl.fma(turns, -HALF_PI_LOW, rest)  # in [-pi/4, pi/4]
    square = rest * rest
    sin = tl.fma(square, -1.9515295891e-4, 8.3321608736e-3)
    sin = tl.fma(square, sin, -1.6666654611e-1)
    sin = tl.fma(square * rest, sin, rest)
    cos = tl.fma(square, 2.443315711809948e-5, -1.388731625493765e-3)
    cos = tl.fma(square, cos, 4.166664568298827e-2)
    cos = tl.fma(square, cos, -0.5)
    cos = tl.fma(square, cos, 1.0)
    swap = (quadrant & 1) != 0
    turned_sin = tl.where(swap, cos, sin).to(tl.int32, bitcast=True) ^ ((quadrant & 2) << 30)
    turned_cos = tl.where(swap, sin, cos).to(tl.int32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    return turned_cos.to(tl.float32, bitcast=True), turned_sin.to(tl.float32, bitcast=True)


@triton.jit
def rotation(
    t,
    h,
    w,
    rotary,
    number,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    POSITIONS: tl.constexpr,
    HALF: tl.constexpr,
):
    """cos and sin for tokens at (t, h, w), tensors that broadcast with `number`, the frequencies'
    numbers below HALF.

    rotary: the frequencies [HALF] float32; or, with POSITIONS > 0, tables of cos and then sin
    [2,POSITIONS,HALF] float32.
    """
    if INTERLEAVED:
        SECTION_W: tl.constexpr = HALF - SECTION_T - SECTION_H
        in_h = (number % 3 == 1) & (number < 3 * SECTION_H)
        in_w = (number % 3 == 2) & (number < 3 * SECTION_W)
        place = tl.where(in_h, h, tl.where(in_w, w, t))
    else:
        in_t = number < SECTION_T
        in_h = number < SECTION_T + SECTION_H
        place = tl.where(in_t, t, tl.where(in_h, h, w))
    if POSITIONS > 0:
        cell = place * HALF + number
        return tl.load(rotary + cell), tl.load(rotary + POSITIONS * HALF + cell)
    return cos_sin(place.to(tl.float32) * tl.load(rotary + number))


@triton.jit
def turn(first, second, cos, sin):
    """Rotate the pairs (x[i], x[i + D/2]) in float32; the result has x's type."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(second.dtype)
