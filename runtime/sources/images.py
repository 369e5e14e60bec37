"""A folder or a glob of images as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError
from vicort.runtime.frame_grid import MAX_ASPECT, is_too_long
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.piped import ByteFile
from vicort.runtime.sources.pixels import Converter
from vicort.runtime.sources.source import Source, Wants, Warn

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

FORMATS = (
    "apng,bmp_pipe,image2,image2pipe,jpeg_pipe,jpegls_pipe,mjpeg,pgm_pipe,png_pipe,ppm_pipe,"
    "tiff_pipe,webp_pipe"
)
# so that a playlist with the name of an image is not opened
ONLY_IMAGES = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}


def is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def natural_order(path: Path) -> list[str | int]:
    """Sort key that puts shot2 before shot10."""
    return [
        int(part) if part.isdecimal() else part.casefold()
        for part in re.split(r"([0-9]+)", str(path))
    ]


class ImageSource(Source):
    """Frame i has the time i / fps, whatever its name or date."""

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        *,
        fps: Fraction,
        warn: Warn | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(name, frames_total=len(paths), duration=len(paths) / fps, warn=warn)
        self._paths = sorted(paths, key=natural_order)
        self._fps = fps
        self._limits = limits or Limits()

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        convert, good = Converter(), 0
        for index, path in enumerate(self._paths):
            time = index / self._fps
            if wants is not None and not wants(time):
                continue
            image = self._decoded(path, convert)
            if image is not None and not self._is_left_out_as_too_long(path, image):
                good += 1
                yield Frame(image, time, index)
        if not good:
            raise SourceError(
                f"none of the {len(self._paths)} images of {self.name} can be used: give PNG or "
                "JPEG files"
            )

    def _decoded(self, path: Path, convert: Converter) -> np.ndarray | None:
        options = ONLY_IMAGES | self._limits.decoder_options
        try:
            with (
                path.open("rb") as file,
                av.open(ByteFile(file), metadata_errors="replace", options=options) as container,
            ):
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise SourceError("it has an unknown codec")
                self._limits.check(path.name, stream.width, stream.height, None)
                stream.codec_context.options = self._limits.decoder_options
                stream.codec_context.thread_count = 1
                return convert(next(container.decode(stream)))
        except SourceError as error:
            self._leave_out(path, str(error))
        except av.ArgumentError as error:  # what FFmpeg's decoders say of a picture over its limit
            self._leave_out(
                path,
                f"it cannot be decoded ({error.strerror}); if it has more than "
                f"{self._limits.pixels} pixels, allow them with `--max-pixels`",
            )
        except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
            why = getattr(error, "strerror", None) or "no picture in it"
            self._leave_out(path, f"it cannot be decoded ({why}): give a PNG or JPEG file")
        return None

    def _is_left_out_as_too_long(self, path: Path, image: np.ndarray) -> bool:
        """So that one image does not end the run of a folder. An image that is the whole source is
        kept: engines of a fixed size take it."""
        height, width = image.shape[:2]
        too_long = is_too_long(height, width) and not self._is_whole_source(path)
        if too_long:
            self._leave_out(
                path,
                f"it has {width}x{height} pixels, and one side is more than {MAX_ASPECT} times the "
                "other: crop it",
            )
        return too_long

    def _is_whole_source(self, path: Path) -> bool:
        return self._paths == [path] and self.name == str(path)

    def _leave_out(self, path: Path, why: str) -> None:
        """Raises SourceError instead where the source is this one image."""
        if self._is_whole_source(path):
            raise SourceError(f"{path} cannot be shown: {why}", why)
        self.warn(f"{path} is left out: {why}")
