"""Decoded pictures -> upright RGB arrays."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter

from vicort.runtime.errors import SourceError

UNSPECIFIED = 2  # in the colour tables of H.273


class Converter:
    """Converts a picture with its own colour matrix and range, and rotates it upright.

    The default is BT.601 with limited range.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        """-> [height, width, 3] uint8 RGB, contiguous; a display matrix may swap height and width.

        Raises SourceError for a picture that cannot be converted to RGB.
        """
        return np.ascontiguousarray(turned(self._rgb(picture), picture))

    def _rgb(self, picture: av.VideoFrame) -> np.ndarray:
        try:
            # the default is one thread per core
            return self._reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray()
        except (av.FFmpegError, ValueError):
            # a damaged header names invalid colour tables
            picture.colorspace = picture.color_trc = picture.color_primaries = UNSPECIFIED
        try:
            return self._reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"pictures of format {picture.format.name} cannot be converted to RGB: convert "
                "them to yuv420p"
            ) from error


def turned(image: np.ndarray, picture: av.VideoFrame) -> np.ndarray:
    """A view of an array [rows, columns, …] that is rotated and mirrored like the picture."""
    try:
        matrix = side_data(picture, "DISPLAYMATRIX")
    # Some versions of PyAV fail on side data that they do not know, such as EXIF; they still report
    # the angle.
    except ValueError:
        return np.rot90(image, round(picture.rotation / 90))
    return image if matrix is None else upright(image, np.frombuffer(bytes(matrix), np.int32))


def side_data(picture: av.VideoFrame, kind: str) -> Any:
    """Side data of a picture, or None. Raises ValueError if PyAV cannot list it.

    `picture.side_data` is not used because it forms a reference cycle with the picture, which then
    stays in memory until the garbage collector runs.
    """
    return SideDataContainer(picture).get(kind)


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
