"""Pixels that are not square: which size a picture has on a screen."""

from __future__ import annotations

from fractions import Fraction

import av

from vicort.runtime.sources.limits import MAX_PIXELS

SQUARE = Fraction(1)
CONTAINERS = ("mov", "matroska", "avi", "asf", "mxf", "nut", "yuv4mpegpipe")  # that have a value
FILE = "file:"  # FFmpeg's protocol of files
MOST = 10  # width of a pixel over its height, or the other way round; beyond, it is no video's


def is_plausible(shape: Fraction | None) -> bool:
    """Whether a width of pixels over their height can be meant: 1:10 to 10:1."""
    return shape is not None and Fraction(1, MOST) <= shape <= MOST


def square_size(height: int, width: int, shape: Fraction) -> tuple[int, int]:
    """Height and width of a picture on a screen, whose pixels are square.

    shape: width of a stored pixel over its height. As in mpv and VLC, one side is extended and
    none is reduced: the width where pixels are wide, the height where they are high. A shape that
    is not plausible, or that makes more than MAX_PIXELS, is ignored.
    """
    if not is_plausible(shape) or height * width * max(shape, 1 / shape) > MAX_PIXELS:
        return height, width
    return (height, _rounded(width * shape)) if shape > 1 else (_rounded(height / shape), width)


# `square_size` as expressions of FFmpeg's filter `scale`, which knows the shape of each picture
_PLAUSIBLE = f"between(sar,1/{MOST},{MOST})*lte(iw*ih*max(sar,1/sar),{MAX_PIXELS})"
WIDTH = f"if({_PLAUSIBLE}*gt(sar,1),floor(iw*sar+1/2),iw)"
HEIGHT = f"if({_PLAUSIBLE}*lt(sar,1),floor(ih/sar+1/2),ih)"


def _rounded(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


class PixelShape:
    """The width of pixels over their height, as the container or the codec says.

    The container's value, if it has one, holds for the whole stream where it differs from that of
    the codec's first picture, as in ffmpeg, mpv and VLC. Otherwise each picture has its own. A file
    that declares another size than the codec does is not believed: most containers have the size
    on a screen, from which FFmpeg computes the shape with the declared size.
    """

    def __init__(self, stream: av.VideoStream | av.VideoCodecContext) -> None:
        if isinstance(stream, av.VideoStream):
            self._context = stream.codec_context
            says = any(kind in stream.container.format.name for kind in CONTAINERS)
            # of another container, FFmpeg tells what it found while probing, perhaps further on
            self._container = stream.sample_aspect_ratio if says else None
            self._stream: av.VideoStream | None = stream
        else:
            self._context, self._container, self._stream = stream, None, None
        self._begun = False
        self._fixed: Fraction | None = None
        self._varies = False  # whether a picture was not square

    @property
    def now(self) -> Fraction:
        """Of the picture that was decoded last, in decoding order."""
        coded: Fraction = self._context.sample_aspect_ratio or SQUARE
        if not self._begun:
            self._begun = True
            if self._container is not None and self._container != coded and self._size_is_true():
                self._fixed = self._container
        return self._fixed or coded

    def see(self) -> None:
        """Called when pictures have been decoded, before others are."""
        _ = self.of_all

    def _size_is_true(self) -> bool:
        """Whether the container declares the size that the codec does, or does not tell."""
        if self._stream is None or not self._stream.container.name.startswith(FILE):
            return True
        declared = _declared_size(self._stream.container.name, self._stream.index)
        return declared in (None, (self._stream.width, self._stream.height))

    @property
    def of_all(self) -> Fraction | None:
        """Of all pictures since the first one, `SQUARE` itself if they are; None if a picture that
        is not square has its own.

        Decoders hold pictures back, so `now` may be that of a later one.
        """
        usual = self._begun and self._fixed is None and not self._varies
        if usual and self._context.sample_aspect_ratio in (None, SQUARE):  # a short way
            return SQUARE
        now = self.now
        if self._fixed is None and now != SQUARE:
            self._varies = True
        return None if self._varies else SQUARE if now == SQUARE else now


def _declared_size(file: str, index: int) -> tuple[int, int] | None:
    """Width and height of a stream as the container declares them; None = it does not."""
    # FFmpeg replaces them as soon as it may open the decoder
    options = {"codec_whitelist": "none", "probesize": "32", "analyzeduration": "0"}
    try:
        with av.open(file, options=options) as container:
            stream = container.streams[index]
            size = (stream.width, stream.height) if isinstance(stream, av.VideoStream) else (0, 0)
    except (av.FFmpegError, OSError, IndexError):
        return None
    return size if min(size) > 0 else None
