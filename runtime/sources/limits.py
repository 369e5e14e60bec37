"""How large a stranger's video may be."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from vicort.runtime.errors import SourceError


@dataclass(frozen=True)
class Limits:
    """What a stream may declare, and what any of its pictures may have; more is refused before it is decoded."""

    pixels: int = 8192 * 8192  # a picture: 201 MB as RGB
    fps: int = 1000  # frames a second

    @property
    def options(self) -> dict[str, str]:
        """For FFmpeg's decoders, which refuse larger pictures than were declared too."""
        return {"max_pixels": str(self.pixels)}

    def check(self, name: str, width: int, height: int, rate: Fraction | None) -> None:
        """Raises SourceError for a stream that declares more; `name` is its source's."""
        if width * height > self.pixels:
            raise SourceError(f"{name} has frames of {width}x{height}, more than {self.pixels} pixels: allow them with `--max-pixels`")
        if rate is not None and rate > self.fps:
            raise SourceError(f"{name} declares {float(rate):g} frames a second, more than {self.fps}: allow them with `--max-fps`")
