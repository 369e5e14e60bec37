"""How many visual tokens a frame becomes: the size rule of Qwen2.5-VL's processor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vicort.runtime.errors import SourceError

MAX_ASPECT = 200  # longer side / shorter side, of transformers' `smart_resize`
MIN_TOKENS = 4  # its smallest frame, 56x56 pixels: smaller ones are enlarged


@dataclass(frozen=True)
class Grid:
    """The visual tokens of a frame, and so of a temporal unit."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def pixels(self, token_pixels: int) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.rows * token_pixels, self.columns * token_pixels


def is_too_long(height: int, width: int) -> bool:
    """Whether one side of a frame is more than MAX_ASPECT times the other."""
    return max(height, width) > MAX_ASPECT * min(height, width)


def fit_grid(height: int, width: int, token_pixels: int, max_pixels: int) -> Grid:
    """The grid for a frame of height x width pixels, of which at least four tokens fit into
    `max_pixels`.

    `smart_resize` of transformers' `Qwen2VLImageProcessor`: each side rounds to whole tokens; if
    the area is then above the limit, or below that of four tokens, both sides are scaled by the
    root of the ratio of the areas, and round down or up. Where a strip of one row would still be
    above the limit, or a small frame is above it once it is enlarged, the longer side is cut, which
    `smart_resize` does not do. Raises SourceError for an aspect ratio above 200.
    """
    if is_too_long(height, width):
        raise SourceError(
            f"a frame of {width}x{height}: one side is more than {MAX_ASPECT} times the other, "
            "which the model does not take: crop the video"
        )
    rows, columns = round(height / token_pixels), round(width / token_pixels)
    min_pixels = MIN_TOKENS * token_pixels**2
    if rows * columns * token_pixels**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (
            max(1, math.floor(side / scale / token_pixels)) for side in (height, width)
        )
    elif rows * columns * token_pixels**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / token_pixels) for side in (height, width))
    most = max_pixels // token_pixels**2
    if rows * columns > most:
        rows, columns = (rows, most // rows) if rows < columns else (most // columns, columns)
    return Grid(rows, columns)


def whole_tokens(pixels: int, token_pixels: int) -> int:
    """The multiple of a token's side that is nearest to `pixels`, at least one token."""
    return max(1, round(pixels / token_pixels)) * token_pixels
