"""Limits on the size and rate of untrusted video."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from vicort.runtime.argument_kinds import checked_real, checked_whole
from vicort.runtime.errors import SourceError

MAX_PIXELS = 8192 * 8192  # of a picture: 201 MB as RGB
BASE_BYTES = 512 << 20
BYTES_PER_PIXEL = 24
MOST = 2**62  # of any limit
FFMPEG_INT_MAX = 2**31 - 1  # FFmpeg reads its options as 32-bit integers


@dataclass(frozen=True)
class Limits:
    """Upper limits on what a stream declares and on each picture. Larger ones are rejected before
    they are decoded."""

    pixels: int = MAX_PIXELS  # in a picture
    fps: int = 1000  # frames per second
    # of a decoder process: for opening, and for each picture, in seconds of processor time
    seconds: float = 10.0
    memory: int | None = (
        None  # of a decoder process, in bytes; None = enough for the largest picture
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for a limit that is none."""
        own = {
            "pixels": checked_whole(self.pixels, "pixels", 1, MOST),
            "fps": checked_whole(self.fps, "fps", 1, MOST),
            "seconds": checked_real(self.seconds, "seconds", 1e-3, MOST),
        }
        if self.memory is not None:
            own["memory"] = checked_whole(self.memory, "memory", 1, MOST)
        for name, value in own.items():  # numbers of Python, which JSON takes
            object.__setattr__(self, name, value)

    @property
    def decoding_bytes(self) -> int:
        """Memory of a decoder process, besides its libraries: two dozen bytes for each pixel of the
        largest picture hold the pictures that a codec refers to, and the RGB of one."""
        return self.memory or BASE_BYTES + BYTES_PER_PIXEL * self.pixels

    @property
    def decoder_options(self) -> dict[str, str]:
        """FFmpeg's own limit. The margin is there because FFmpeg counts whole blocks of pixels."""
        allowed = self.pixels + self.pixels // 8 + (1 << 16)
        return {"max_pixels": str(min(allowed, FFMPEG_INT_MAX))}

    def allows(self, width: int, height: int) -> bool:
        return width * height <= self.pixels

    def check(self, name: str, width: int, height: int, rate: Fraction | None) -> None:
        """Raises SourceError if a stream declares more than is allowed. name: of the source."""
        if not self.allows(width, height):
            raise SourceError(
                f"{name} has frames of {width}x{height}, more than {self.pixels} pixels: allow "
                "them with `--max-pixels`"
            )
        if rate is not None and rate > self.fps:
            raise SourceError(
                f"{name} declares {float(rate):g} frames per second, more than {self.fps}: allow "
                "them with `--max-fps`"
            )
