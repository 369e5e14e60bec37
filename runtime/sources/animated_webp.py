"""An animated WebP as a stream: FFmpeg decodes each of its pictures alone, and here they are put
together."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.pixels import EVERY_COLUMN, over_white
from vicort.runtime.sources.source import Ending, Source, Wanted, Wants, Warn

MAX_BYTES = 64 << 20  # of one encoded picture
HEAD = 16  # bytes of a picture's place, size and length before its data
ALPHA = 0x10  # a bit of the chunk VP8X
DISPOSES, REPLACES = 0x01, 0x02  # bits of a picture
# browsers, and FFmpeg for GIF, show a picture of at most this many milliseconds for USUAL_LENGTH
SHORTEST, USUAL_LENGTH = 10, 100
ROWS = 64  # of pixels that are blended at a time


@dataclass(frozen=True)
class _Patch:
    """One encoded picture, which covers a rectangle of the canvas."""

    left: int
    top: int
    width: int
    height: int
    length: int  # milliseconds
    disposes: bool  # its rectangle is cleared before the next one
    replaces: bool  # instead of being blended
    at: int  # where its data begin in the file
    size: int  # of its data, in bytes

    @classmethod
    def read(cls, head: bytes, at: int, size: int) -> _Patch:
        left, top, width, height, length = (
            int.from_bytes(head[place : place + 3], "little") for place in range(0, 15, 3)
        )
        flags = head[15]
        return cls(
            2 * left,
            2 * top,
            width + 1,
            height + 1,
            USUAL_LENGTH if length <= SHORTEST else length,
            bool(flags & DISPOSES),
            bool(flags & REPLACES),
            at + HEAD,
            size - HEAD,
        )


class AnimatedWebpSource(Source):
    """Each picture of the animation, over white where it is transparent, shown once through.

    A picture that cannot be decoded leaves out its change of the canvas, and is counted.
    """

    def __init__(
        self, path: Path, name: str, *, warn: Warn | None = None, limits: Limits | None = None
    ) -> None:
        """Raises SourceError for a file that has no picture or exceeds the limits."""
        super().__init__(name, warn=warn)
        self._path = path
        self._limits = limits or Limits()
        with path.open("rb") as file:
            self._width, self._height = _canvas_size(file, name)
            self._limits.check(name, self._width, self._height, None)
            count = length = 0
            for patch in _patches(file):
                count, length = count + 1, length + patch.length
        if not count:
            raise SourceError(f"{name} is an animated WebP without a picture: write it again")
        self.frames_total, self.duration = count, Fraction(length, 1000)

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        canvas = np.zeros((self._height, self._width, 4), np.uint8)
        decoder = _Decoder(self._limits)
        time, damaged, index, complete = Fraction(0), 0, 0, True
        before: _Patch | None = None
        left_out: Frame | None = None  # the one before, if it was not wanted
        with self._path.open("rb") as file:
            for index, patch in enumerate(_patches(file)):
                if before and before.disposes:
                    _of(canvas, before)[...] = 0
                data = _read(file, patch.at, patch.size) if patch.size <= MAX_BYTES else b""
                complete = len(data) == patch.size
                try:
                    _draw(_of(canvas, patch), decoder(patch, data), patch.replaces)
                except (av.FFmpegError, ValueError):
                    damaged += 1
                if damaged <= index:  # a picture was decoded
                    frame = Frame(np.array(over_white(canvas)), time, index)
                    wanted = wants is None or wants(time)
                    if wanted == Wanted.BOTH and left_out:
                        yield left_out
                    if wanted:
                        yield frame
                    left_out = None if wanted else frame
                time += Fraction(patch.length, 1000)
                before = patch
        if left_out:
            self.ending = Ending(left_out, time)
        self._report(index + 1, damaged, complete)

    def _report(self, pictures: int, damaged: int, complete: bool) -> None:
        """Raises SourceError if nothing was decoded, TruncatedSource if the file ends early."""
        if damaged == pictures:
            raise SourceError(
                f"{self.name} is an animated WebP of which no picture can be decoded: write it "
                "again"
            )
        if not complete:
            raise TruncatedSource(
                f"{self.name} breaks off after {pictures - damaged} frames (its last picture is "
                "cut off): fetch or record it again"
            )
        if damaged:
            self.warn(f"{self.name}: {damaged} damaged pictures are missing")


class _Decoder:
    """FFmpeg's decoder of still WebP."""

    def __init__(self, limits: Limits) -> None:
        self._context = cast(av.VideoCodecContext, av.CodecContext.create("webp", "r"))
        self._context.options = limits.decoder_options
        self._context.thread_count = 1
        self._reformatter = VideoReformatter()

    def __call__(self, patch: _Patch, data: bytes) -> np.ndarray:
        """-> [height, width, 4] uint8 RGBA. Raises ValueError and errors of FFmpeg."""
        (picture,) = self._context.decode(av.Packet(_still(patch, data)))
        image = self._reformatter.reformat(
            picture, format="rgba", interpolation=EVERY_COLUMN, threads=1
        )
        return image.to_ndarray()


def _still(patch: _Patch, data: bytes) -> bytes:
    """A still WebP of one encoded picture."""
    size = b"".join((side - 1).to_bytes(3, "little") for side in (patch.width, patch.height))
    flags = ALPHA if data.startswith(b"ALPH") else 0
    extended = b"VP8X" + struct.pack("<IB3x", 10, flags) + size
    body = b"WEBP" + (extended if flags else b"") + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _canvas_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Width and height. Raises SourceError."""
    head = _read(file, 0, 30)
    if len(head) < 30:
        raise SourceError(f"{name} is an animated WebP that is cut off: fetch it again")
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    return width, height


def _patches(file: BinaryIO) -> Iterator[_Patch]:
    """The pictures in order; the last one may be cut off."""
    at = 12
    while len(head := _read(file, at, 8)) == 8:
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind == b"ANMF" and len(head := _read(file, at + 8, HEAD)) == HEAD <= size:
            yield _Patch.read(head, at + 8, size)
        at += 8 + size + size % 2


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _of(canvas: np.ndarray, patch: _Patch) -> np.ndarray:
    """The view of the canvas that a picture covers."""
    rows = slice(patch.top, patch.top + patch.height)
    return canvas[rows, patch.left : patch.left + patch.width]


def _draw(under: np.ndarray, image: np.ndarray, replaces: bool) -> None:
    """Draw RGBA over RGBA, colours not multiplied by alpha, rounded as in libwebp. Raises
    ValueError for a picture that has not the size of its place on the canvas."""
    if under.shape != image.shape:
        raise ValueError("the picture does not fit")
    if replaces or image[..., 3].min() == 255:
        under[...] = image
        return
    for row in range(0, len(image), ROWS):
        over, below = (part[row : row + ROWS].astype(np.uint32) for part in (image, under))
        alpha = over[..., 3:]
        rest = below[..., 3:] * (256 - alpha) >> 8
        both = alpha + rest
        mixed = (over[..., :3] * alpha + below[..., :3] * rest) // np.maximum(both, 1)
        new = np.concatenate([mixed, both], -1).astype(np.uint8)
        under[row : row + ROWS] = np.where(alpha == 0, under[row : row + ROWS], new)
