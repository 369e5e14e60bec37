"""Keys and values as int8 vectors with one scale each, as an int8 pool holds them."""

from __future__ import annotations

import numpy as np

LARGEST = 127
# A smaller scale is a subnormal float32, by which a GPU may not divide exactly.
MIN_SCALE = float(np.finfo(np.float32).tiny)


def quantised(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric rounding of vectors [..., D] to q [..., D] int8 and scales [...] float32: a vector
    is about q * scale, with an error of at most scale / 2 in each element.

    scale = max|x| / 127, q = x / scale rounded to the nearest, half to even. A vector of zeros, or
    of numbers below 127 * 1.2e-38, has the scale 0. A vector that holds NaN or an infinity has an
    infinite scale and q = 0, whose product is NaN: the error stays visible, as it is in a pool of
    floats.
    """
    wide = vectors.astype(np.float32)
    size = np.where(np.isnan(wide), np.float32(np.inf), np.abs(wide))
    scales = size.max(axis=-1) / np.float32(LARGEST)
    scales = np.where(scales < MIN_SCALE, np.float32(0), scales)
    usable = (scales > 0) & np.isfinite(scales)
    divisor = np.where(usable, scales, 1)[..., None]
    numbers = np.rint(np.where(usable[..., None], wide, 0) / divisor)
    return numbers.astype(np.int8), scales
