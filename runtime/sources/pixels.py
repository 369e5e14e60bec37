"""Decoded pictures -> upright RGB arrays with square pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter

from vicort.runtime.errors import SourceError
from vicort.runtime.sources.hdr import HLG, PQ, ToneMap
from vicort.runtime.sources.pixel_shape import HEIGHT, SQUARE, WIDTH, PixelShape, square_size

UNSPECIFIED, BT709 = 2, 1  # in the colour tables of H.273
# FFmpeg's faster conversion of yuv420p and yuv422p leaves columns at the right unwritten: up to
# four into RGBA where the width is no multiple of 16, one into 16 bits where it is odd
EVERY_COLUMN = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
ROWS = 64  # of pixels at a time, which stay in the processor's cache
# kinds of side data that FFmpeg has and PyAV may not know
NEWER_SIDE_DATA = range(len(Type), 36)
# what FFmpeg's PNG decoders, also of animated ones, give
PNG_FORMATS = (
    *("rgb24", "rgba", "gray", "ya8", "pal8", "monob"),
    *("rgb48be", "rgba64be", "gray16be", "ya16be"),
)


@dataclass(frozen=True)
class Crop:
    """What a container cuts off the sides of a picture, in stored pixels."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def of(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """The view of an image that is left of a stored picture of height x width."""
        rows, columns = image.shape[:2]
        top, bottom = (round(cut * rows / height) for cut in (self.top, height - self.bottom))
        left, right = (round(cut * columns / width) for cut in (self.left, width - self.right))
        return image[top:bottom, left:right]


NO_CROP = Crop()


class Converter:
    """Converts a picture as people see it: with its own colour matrix and range, square pixels,
    over white where it is transparent, cropped and rotated upright.

    Where a picture does not name its matrix, a video has that of BT.709 if it is at least 1280
    pixels wide or more than 576 high, as in mpv and ffplay, and otherwise BT.601. A still picture
    has BT.601 (JPEG, WebP, AVIF). The range is limited unless the picture says otherwise.
    """

    def __init__(
        self, shape: PixelShape | None = None, *, still: bool = False, crop: Crop = NO_CROP
    ) -> None:
        """shape: of the stream's pixels; None = square. still: whether pictures are photos."""
        self._shape = shape
        self._still = still
        self._crop = crop
        self._reformatter = VideoReformatter()
        self._kinds: dict[str, _Kind] = {}
        self._squarer: _Squarer | None = None
        self._tone_maps: dict[int, ToneMap] = {}

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        """-> [height, width, 3] uint8 RGB, contiguous; a display matrix may swap height and width.

        Raises SourceError for a picture that cannot be converted to RGB.
        """
        image = self.stored(picture)
        if self._crop is not NO_CROP:
            image = self._crop.of(image, picture.height, picture.width)
        return np.ascontiguousarray(turned(image, picture))

    def stored(self, picture: av.VideoFrame) -> np.ndarray:
        """The same, neither cropped nor turned, and perhaps a view."""
        kind = self._kinds.get(picture.format.name) or self._kind(picture.format)
        if picture.colorspace == UNSPECIFIED and kind.has_matrix and not self._still:
            picture.colorspace = matrix_of(picture.height, picture.width)
        if kind.has_alpha:
            return over_white(self._rgb(picture, "rgba"))
        if picture.color_trc in (PQ, HLG) and kind.has_matrix:
            return self._tone_map(picture.color_trc)(self._rgb(picture, "rgb48le"))
        return self._rgb(picture, "rgb24")

    def _kind(self, pixel_format: VideoFormat) -> _Kind:
        kind = self._kinds[pixel_format.name] = _Kind.of(pixel_format)
        return kind

    def _tone_map(self, transfer: int) -> ToneMap:
        if transfer not in self._tone_maps:
            self._tone_maps[transfer] = ToneMap(transfer)
        return self._tone_maps[transfer]

    def _rgb(self, picture: av.VideoFrame, into: str) -> np.ndarray:
        try:
            return self._scaled(picture, into).to_ndarray()
        except (av.FFmpegError, ValueError):
            # a damaged header names invalid colour tables
            picture.colorspace = picture.color_trc = picture.color_primaries = UNSPECIFIED
        try:
            return self._scaled(picture, into).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"pictures of format {picture.format.name} cannot be converted to RGB: convert "
                "them to yuv420p"
            ) from error

    def _scaled(self, picture: av.VideoFrame, into: str) -> av.VideoFrame:
        shape = self._shape.of_all if self._shape else SQUARE
        if shape is not None:
            height, width = square_size(picture.height, picture.width, shape)
            # the default is one thread per core
            return self._reformatter.reformat(
                picture, width, height, format=into, interpolation=_how(into), threads=1
            )
        key = (picture.width, picture.height, picture.format.name, into)
        if self._squarer is None or self._squarer.key != key:
            self._squarer = _Squarer(picture, into)
        return self._squarer(picture)


@dataclass(frozen=True)
class _Kind:
    """What matters of a pixel format."""

    has_alpha: bool
    has_matrix: bool  # is not RGB

    @classmethod
    def of(cls, pixel_format: VideoFormat) -> _Kind:
        alpha = pixel_format.has_palette or any(
            component.is_alpha for component in pixel_format.components
        )
        return cls(alpha, not (pixel_format.is_rgb or pixel_format.has_palette))


class _Squarer:
    """Converts and scales to square pixels by each picture's own pixel shape, which PyAV shows to
    filters alone."""

    def __init__(self, picture: av.VideoFrame, into: str) -> None:
        self.key = (picture.width, picture.height, picture.format.name, into)
        self._graph = Graph()
        self._graph.threads = 1
        nodes = [
            self._graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=Fraction(1, av.time_base),
            ),
            self._graph.add("scale", w=WIDTH, h=HEIGHT, eval="frame", flags=str(_how(into).value)),
            self._graph.add("format", pix_fmts=into),
            self._graph.add("buffersink"),
        ]
        self._graph.link_nodes(*nodes)
        self._graph.configure()

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        self._graph.push(picture)
        return self._graph.vpull()


def _how(into: str) -> Interpolation:
    """The options of a conversion into a pixel format."""
    return Interpolation.BILINEAR if into == "rgb24" else EVERY_COLUMN


def matrix_of(height: int, width: int) -> int:
    """The colour matrix of a video that names none, by its size (H.273)."""
    return BT709 if width >= 1280 or height > 576 else UNSPECIFIED


def over_white(image: np.ndarray) -> np.ndarray:
    """A picture [height, width, 4] uint8 RGBA, its colours not multiplied by alpha, over white, as
    Qwen's utilities paste it. -> [height, width, 3] uint8"""
    if image[..., 3].min() == 255:
        return image[..., :3]
    out = np.empty((*image.shape[:2], 3), np.uint8)
    for row in range(0, len(image), ROWS):
        part = image[row : row + ROWS].astype(np.uint16)
        colours, alpha = part[..., :3], part[..., 3:]
        mixed = colours * alpha + 255 * (255 - alpha) + 128
        out[row : row + ROWS] = (mixed + (mixed >> 8)) >> 8  # rounded as in Pillow's `paste`
    return out


def turned(image: np.ndarray, picture: av.VideoFrame) -> np.ndarray:
    """A view of an array [rows, columns, …] that is rotated and mirrored like the picture."""
    matrix = display_matrix(picture)
    return image if matrix is None else upright(image, matrix)


def display_matrix(picture: av.VideoFrame) -> np.ndarray | None:
    """[9] int32, see `upright`; None = the picture is upright."""
    try:
        matrix = side_data(picture, "DISPLAYMATRIX")
    except ValueError:
        # PyAV lists no kind beside one that it does not know, such as EXIF
        matrix = side_data(_without(picture, NEWER_SIDE_DATA), "DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)


def side_data(picture: av.VideoFrame, kind: str) -> Any:
    """Side data of a picture, or None. Raises ValueError if PyAV cannot list it.

    `picture.side_data` is not used because it forms a reference cycle with the picture, which then
    stays in memory until the garbage collector runs. The colour profile of a PNG is left out before
    it is listed: it has a name, which PyAV and FFmpeg would both free.
    """
    if picture.format.name in PNG_FORMATS:
        picture = _without(picture, [Type.ICC_PROFILE.value])
    listed = SideDataContainer(picture)
    return listed.get(kind) if len(listed) else None


def _without(picture: av.VideoFrame, kinds: Iterable[int]) -> av.VideoFrame:
    """The picture without side data of these kinds."""
    graph = Graph()
    nodes = [
        graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=Fraction(1, av.time_base),
        ),
        *(graph.add("sidedata", mode="delete", type=str(kind)) for kind in kinds),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes)
    graph.configure()
    graph.push(picture)
    return graph.vpull()


def upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A view of the image after its display matrix: quarter turns and mirroring. Other angles are
    rounded to the nearest quarter turn.

    matrix: [9] int32, rows (a b u) (c d v) (x y w), 16.16 fixed point. The pixel at (p, q) moves to
    (a p + c q, b p + d q).
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) < abs(b):  # rows become columns
        image, mirrored, upended = image.swapaxes(0, 1), c < 0, b < 0
    else:
        mirrored, upended = a < 0, d < 0
    return image[:: -1 if upended else 1, :: -1 if mirrored else 1]
