"""A kernel of one expression, for the interpreter."""

import triton
import triton.language as tl

from vicort.export.kernels.rotary import cos_sin


@triton.jit
def store_cos_sin(angles, cos, sin, COUNT: tl.constexpr):
    number = tl.arange(0, COUNT)
    c, s = cos_sin(tl.load(angles + number))
    tl.store(cos + number, c)
    tl.store(sin + number, s)
