"""A folder or a glob of images as a stream."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError
from vicort.runtime.frame_grid import MAX_ASPECT, is_too_long
from vicort.runtime.safe_text import shown
from vicort.runtime.sources.animated_webp import AnimatedWebpSource
from vicort.runtime.sources.animation import is_animated_webp, is_animation
from vicort.runtime.sources.heif_items import MainPicture, main_picture
from vicort.runtime.sources.heif_pictures import HeifDecoder
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.piped import ByteFile
from vicort.runtime.sources.pixels import Converter
from vicort.runtime.sources.source import Source, Wants, Warn

JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
PNM = (".pam", ".pbm", ".pgm", ".pnm", ".ppm")
HEIF = (".avif", ".heic", ".heif", ".hif")
# of raw photos, which FFmpeg does not develop
RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
TIFF = (".tif", ".tiff")
OTHER = (".apng", ".bmp", ".gif", ".j2k", ".jp2", ".jxl", ".png", ".qoi", ".tga", ".webp")
SUFFIXES = tuple(sorted((*JPEG, *PNM, *TIFF, *HEIF, *RAW, *OTHER)))
# programs that convert what FFmpeg may not read
CONVERTERS = {
    **dict.fromkeys(HEIF, "heif-convert"),
    **dict.fromkeys(RAW, "darktable-cli"),
    ".jxl": "djxl",
    ".webp": "magick",
}

FORMATS = (
    "apng,bmp_pipe,gif,image2,image2pipe,j2k_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,mjpeg,"
    "pam_pipe,pbm_pipe,pgm_pipe,png_pipe,ppm_pipe,qoi_pipe,tiff_pipe,webp_pipe"
)
HEIF_FORMAT = "mov"  # FFmpeg's reader of MP4 is that of HEIF
NAMES_SHOWN = 3  # of files that are left out


def is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def grouped(specs: Sequence[str]) -> list[str | tuple[str, ...]]:
    """Sources as they are typed, where several single images are one source at the place of the
    first: a shell makes a list of them from a pattern. Animations are sources of their own."""
    images = [spec for spec in specs if is_image(Path(spec)) and not is_animation(Path(spec))]
    if len(images) < 2:
        return list(specs)
    first, single = images[0], set(images)
    before = specs[: specs.index(first)]
    after = [spec for spec in specs[len(before) :] if spec not in single]
    return [*before, tuple(images), *after]


def name_of(spec: str | Sequence[str]) -> str:
    """The name of a source for events and messages."""
    return spec if isinstance(spec, str) else f"{spec[0]} and {len(spec) - 1} more images"


def others_left_out(paths: Iterable[Path]) -> str:
    """What a warning says of the files among them that have no ending of an image, and of what has
    one and is no file; "" if there are none. Hidden files and folders do not count."""
    paths = [path for path in paths if not path.name.startswith(".") and not path.is_dir()]
    said = [
        _counted(
            [path for path in paths if path.is_file() and not is_image(path)],
            "files without the ending of an image",
        ),
        _counted([path for path in paths if not path.is_file()], "names of no readable file"),
    ]
    return "; ".join(filter(None, said))


def _counted(paths: list[Path], what: str) -> str:
    if not paths:
        return ""
    names = ", ".join(shown(path.name) for path in sorted(paths)[:NAMES_SHOWN])
    more = ", …" if len(paths) > NAMES_SHOWN else ""
    return f"{len(paths)} {what} are left out ({names}{more})"


def natural_order(path: Path) -> tuple[list[str | tuple[int, str]], str]:
    """Sort key that puts shot2 before shot10, for any name: only the digits 0 to 9 count as
    numbers, of any length; upper and lower case are the same unless nothing else differs."""
    # text and digits in turns, so that like is compared with like
    parts = re.split(r"([0-9]+)", str(path.parent / path.stem))
    key: list[str | tuple[int, str]] = [part.casefold() for part in parts]
    for place in range(1, len(parts), 2):
        digits = parts[place].lstrip("0")
        key[place] = (len(digits), digits)
    return key, str(path)


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
        convert, good = Converter(still=True), 0
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
        try:
            if path.suffix.lower() in RAW:
                raise SourceError(f"raw photos are not developed: {_conversion(path)}")
            if is_animated_webp(path):
                return self._first_of_webp(path)
            if path.suffix.lower() in HEIF and (main := main_picture(path)):
                return self._heif(path, main, convert)
            picture = self._tga(path) if path.suffix.lower() == ".tga" else self._picture(path)
            return convert(picture)
        except SourceError as error:
            self._leave_out(path, str(error))
        except av.ArgumentError as error:  # what FFmpeg's decoders say of a picture over its limit
            self._leave_out(
                path,
                f"it cannot be decoded ({error.strerror}): {_conversion(path)}; if it has more "
                f"than {self._limits.pixels} pixels, allow them with `--max-pixels`",
            )
        except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
            why = getattr(error, "strerror", None) or "no picture in it"
            self._leave_out(path, f"it cannot be decoded ({why}): {_conversion(path)}")
        return None

    def _picture(self, path: Path) -> av.VideoFrame:
        """The first picture of a file. Raises SourceError, and errors of FFmpeg and Python."""
        formats = HEIF_FORMAT if path.suffix.lower() in HEIF else FORMATS
        with path.open("rb") as file, self._opened(file, formats) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SourceError(f"it has an unknown codec: {_conversion(path)}")
            self._limits.check(path.name, stream.width, stream.height, None)
            stream.codec_context.options = self._limits.decoder_options
            stream.codec_context.thread_count = 1
            picture = next(container.decode(stream))
            if is_animation(path) and (path.suffix.lower() != ".gif" or _goes_on(container)):
                self._warn_of_animation(path)
            if path.suffix.lower() in TIFF and _has_second_page(path):
                self.warn(f"{path} has several pages: only the first one is shown")
            return picture

    def _first_of_webp(self, path: Path) -> np.ndarray:
        """Raises SourceError."""
        for frame in AnimatedWebpSource(path, path.name, limits=self._limits).frames():
            if frame.index:
                break
            self._warn_of_animation(path)
            return frame.image
        raise SourceError(f"its first picture cannot be decoded: {_conversion(path)}")

    def _warn_of_animation(self, path: Path) -> None:
        self.warn(f"{path} is animated: of a file among others, only its first picture is shown")

    def _heif(self, path: Path, main: MainPicture, convert: Converter) -> np.ndarray:
        """Raises SourceError, and errors of FFmpeg and Python."""
        if is_animation(path):
            self._warn_of_animation(path)
        with path.open("rb") as file, self._opened(file, HEIF_FORMAT) as container:
            decoder = HeifDecoder(container, self._limits, path.name)
            if decoder.knows(main):
                return decoder.picture(main)
        return convert(self._picture(path))

    def _opened(self, file: BinaryIO, formats: str) -> av.container.InputContainer:
        # so that a playlist with the name of an image is not opened
        options = {"format_whitelist": formats, "protocol_whitelist": "none"}
        return av.open(
            ByteFile(file),
            metadata_errors="replace",
            options=options | self._limits.decoder_options,
        )

    def _tga(self, path: Path) -> av.VideoFrame:
        """A TGA has no first bytes by which FFmpeg would know it."""
        context = av.CodecContext.create("targa", "r")
        context.options = self._limits.decoder_options
        data = path.read_bytes()
        packet = av.Packet(len(data))
        packet.update(data)
        (picture,) = context.decode(packet)
        return picture

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


def _goes_on(container: av.container.InputContainer) -> bool:
    """Whether another picture follows."""
    try:
        return next(container.decode(video=0), None) is not None
    except av.FFmpegError:
        return False


def _has_second_page(path: Path) -> bool:
    """Of a TIFF: its directories are a list, each one with the place of the next after its entries
    of 12 bytes (TIFF 6.0, section 2)."""
    with path.open("rb") as file:
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(file.read(4))
        if order is None:  # another format under this name
            return False
        try:
            (place,) = struct.unpack(f"{order}I", file.read(4))
            file.seek(place)
            (entries,) = struct.unpack(f"{order}H", file.read(2))
            file.seek(12 * entries, os.SEEK_CUR)
            (place,) = struct.unpack(f"{order}I", file.read(4))
        except struct.error:
            return False
    return bool(place)


def _conversion(path: Path) -> str:
    """What to do with a file that cannot be read."""
    program = CONVERTERS.get(path.suffix.lower())
    return "give a PNG or JPEG file" + (f", such as {program} makes of it" if program else "")
