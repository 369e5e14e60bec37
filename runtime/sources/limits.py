"""How large a stranger's video may be."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from vicort.runtime.errors import SourceError


@dataclass(frozen=True)
class Limits:
    """What a stream may declare, and what any of its pictures may have; more is refused before it
    is decoded."""

    pixels: int = 8192 * 8192  # a picture: 201 MB as RGB
    fps: int = 1000  # frames a second

    @property
    def decoder_options(self) -> dict[str, str]:
        """FFmpeg's, so that nothing much larger is even decoded; it counts pictures in whole
        blocks, hence the margin."""
        return {"max_pixels": str(min(self.pixels + self.pixels // 8 + (1 << 16), 2**31 - 1))}

    def allows(self, width: int, height: int) -> bool:
        return width * height <= self.pixels

    def check(self, name: str, width: int, height: int, rate: Fraction | None) -> None:
        """Raises SourceError for a stream that declares more; `name` is its source's."""
        if not self.allows(width, height):
            raise SourceError(
                f"{name} has frames of {width}x{height}, more than {self.pixels} pixels: allow "
                "them with `--max-pixels`"
            )
        if rate is not None and rate > self.fps:
            raise SourceError(
                f"{name} declares {float(rate):g} frames a second, more than {self.fps}: allow "
                "them with `--max-fps`"
            )
