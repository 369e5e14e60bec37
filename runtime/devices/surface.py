"""Decoded pictures as NVDEC returns them: NV12 planes in device memory, not rotated upright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# black level, range of luma, range of chroma
LIMITED = (16.0, 219.0, 224.0)
FULL = (0.0, 255.0, 255.0)


@dataclass(frozen=True)
class Surface:
    """An 8-bit 4:2:0 YCbCr picture (NV12), and how to convert it to upright RGB."""

    luma: Any  # [h,w,1] uint8: a NumPy array, or on a GPU an object with __cuda_array_interface__
    chroma: Any  # [ceil(h/2),ceil(w/2),2] uint8, Cb and Cr
    to_rgb: np.ndarray  # [3,4] float32, from `to_rgb`: RGB = to_rgb @ (Y, Cb, Cr, 1)
    quarters: int = 0  # counter-clockwise quarter turns to upright, after mirroring
    mirrored: bool = False  # mirror left to right first
    # pixels: height and width before turning, with square pixels; None = those of luma
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the upright picture with square pixels."""
        height, width = self.size or self.luma.shape[:2]
        return (width, height, 3) if self.quarters % 2 else (height, width, 3)


def to_rgb(red: float, blue: float, full: bool) -> np.ndarray:
    """[3,4] float32: (Y, Cb, Cr, 1) of 8 bits -> RGB of 0 to 255 (the form that ITU-R BT.601,
    BT.709 and BT.2020 share).

    red, blue: the luma coefficients Kr and Kb. full: full range (0 to 255) rather than limited.
    """
    black, white, swing = FULL if full else LIMITED
    green = 1 - red - blue
    y, c = 255 / white, 255 / swing
    matrix = np.array(
        [
            [y, 0, 2 * (1 - red) * c],
            [y, -2 * (1 - blue) * blue / green * c, -2 * (1 - red) * red / green * c],
            [y, 2 * (1 - blue) * c, 0],
        ]
    )
    return np.column_stack([matrix, -matrix @ (black, 128, 128)]).astype(np.float32)
