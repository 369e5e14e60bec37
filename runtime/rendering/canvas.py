"""Pictures of any size on a canvas of one size that H.264 takes."""

from __future__ import annotations

import numpy as np
from PIL import Image

MAX_SIDE = 4096  # pixels: more is not played by many decoders of browsers and machines


class Canvas:
    """Fits pictures into the size of the first one: with even sides, of at most MAX_SIDE pixels."""

    def __init__(self, height: int, width: int) -> None:
        """height, width: of the first picture, in pixels."""
        scale = min(1.0, MAX_SIDE / max(height, width))
        self._shown = (max(1, round(height * scale)), max(1, round(width * scale)))
        self.height, self.width = (side + side % 2 for side in self._shown)

    def place(self, picture: np.ndarray) -> np.ndarray:
        """A copy of a picture [rows, columns, 3] uint8 -> [height, width, 3].

        One of another size than the first is scaled, with black bars. An odd side gets its last row
        or column twice.
        """
        if picture.shape[:2] != self._shown:
            picture = self._scaled(picture)
        placed = np.empty((self.height, self.width, 3), np.uint8)
        rows, columns = picture.shape[:2]
        placed[:rows, :columns] = picture
        placed[rows:, :columns] = placed[rows - 1 : rows, :columns]
        placed[:, columns:] = placed[:, columns - 1 : columns]
        return placed

    def _scaled(self, picture: np.ndarray) -> np.ndarray:
        rows, columns = picture.shape[:2]
        height, width = self._shown
        scale = min(height / rows, width / columns)
        size = max(1, round(columns * scale)), max(1, round(rows * scale))
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        if small.shape == (height, width, 3):
            return small
        black = np.zeros((height, width, 3), np.uint8)
        top, left = (height - size[1]) // 2, (width - size[0]) // 2
        black[top : top + size[1], left : left + size[0]] = small
        return black
