"""Pictures as a GPU's video engine leaves them: brightness and colour apart, in its memory, not
turned upright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# black level, steps from black to white, steps of a colour difference, of 8-bit "TV" range
LIMITED = (16.0, 219.0, 224.0)
FULL = (0.0, 255.0, 255.0)


@dataclass(frozen=True)
class Surface:
    """A picture as 4:2:0 YCbCr of 8 bits (NV12), and what makes upright RGB of it."""

    luma: Any  # [h, w, 1] uint8: an array, or on a GPU whatever has a __cuda_array_interface__
    chroma: Any  # [ceil(h/2), ceil(w/2), 2] uint8, Cb and Cr
    to_rgb: np.ndarray  # [3, 4] float32, as `to_rgb` gives it: RGB = to_rgb @ (Y, Cb, Cr, 1)
    quarters: int = 0  # quarter turns, counter-clockwise, that show it upright; after the mirroring
    mirrored: bool = False  # left and right change places, before it is turned

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the upright picture."""
        height, width = self.luma.shape[:2]
        return (width, height, 3) if self.quarters % 2 else (height, width, 3)


def to_rgb(red: float, blue: float, full: bool) -> np.ndarray:
    """[3, 4] float32: 8-bit YCbCr with a 1 behind -> RGB of 0 to 255 (ITU-R BT.601, BT.709 and
    BT.2020 all have this form).

    red, blue: their shares of the brightness, Kr and Kb. full: the values use all of 0 to 255, not
    the range of television.
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
