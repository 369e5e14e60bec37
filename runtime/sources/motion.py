"""Motion of a picture, from the motion vectors that the decoder exports."""

from __future__ import annotations

import av
import numpy as np
from av.video.frame import PictureType

from vicort.runtime.core import MOTION_CELL, Motion
from vicort.runtime.sources.pixels import NO_CROP, Crop, side_data, turned

# FFmpeg's decoders that export motion vectors; others accept the option and export none
EXPORTING = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
EXPORT_VECTORS = {"flags2": "+export_mvs"}  # FFmpeg's option
INTRA = (PictureType.I, PictureType.SI, PictureType.BI)


def exports_vectors(codec: str) -> bool:
    return codec in EXPORTING


class MotionReader:
    """Accumulates motion over all pictures of a stream, from one sampled frame to the next."""

    def __init__(self, vectors: bool, crop: Crop = NO_CROP) -> None:
        """vectors: whether the decoder exports them; otherwise only I pictures are reported. crop:
        what the container cuts off the pictures."""
        self._vectors = vectors
        self._crop = crop
        self._since: Motion | None = None  # the last sampled frame
        self._size: tuple[int, int] | None = None  # height, width of the previous picture

    def see(self, picture: av.VideoFrame) -> None:
        size = (picture.height, picture.width)
        if size != self._size or picture.is_corrupt or picture.pict_type in INTRA:
            self._size = size
            motion = Motion(True, np.zeros(_grid(*size), np.float32) if self._vectors else None)
        else:
            motion = Motion(
                False, _cells(picture) if self._vectors and not picture.interlaced_frame else None
            )
        self._since = _upright(motion, picture, self._crop).after(self._since)

    def take(self) -> Motion | None:
        """The motion of the latest picture since the previous call."""
        taken, self._since = self._since, None
        return taken


def longest_vectors(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """[rows, columns] float32: the longest vector of each cell of a picture, in pixels, or inf for
    an intra-coded cell, which has none. A block that does not move has a vector of length 0.

    vectors: FFmpeg's AVMotionVector records.
    """
    rows, columns = _grid(height, width)
    # dst: a block's centre
    row, column = vectors["dst_y"] // MOTION_CELL, vectors["dst_x"] // MOTION_CELL
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    length = np.hypot(vectors["motion_x"], vectors["motion_y"]) / np.maximum(
        vectors["motion_scale"], 1
    )
    longest = np.full((rows, columns), -1, np.float32)
    np.maximum.at(longest, (row[inside], column[inside]), length[inside].astype(np.float32))
    longest[longest < 0] = np.inf
    return longest


def _cells(picture: av.VideoFrame) -> np.ndarray | None:
    """None if PyAV cannot read the vectors."""
    try:
        vectors = side_data(picture, "MOTION_VECTORS")
    except ValueError:  # PyAV cannot list side data of unknown kinds
        return None
    if vectors is None:
        return np.full(_grid(picture.height, picture.width), np.inf, np.float32)
    return longest_vectors(vectors.to_ndarray(), picture.height, picture.width)


def _upright(motion: Motion, picture: av.VideoFrame, crop: Crop) -> Motion:
    """Rotate the motion like the picture. Cells that are cut by the edge of the picture may then
    come first instead of last."""
    if motion.cells is None:
        return motion
    cells, corners = turned(motion.cells, picture), turned(np.arange(4).reshape(2, 2), picture)
    # the new position of the first cell's corner
    (row, column), right_of_it = np.argwhere(corners == 0)[0], np.argwhere(corners == 1)[0]
    height, width = (
        (picture.width, picture.height)
        if right_of_it[1] == column
        else (picture.height, picture.width)
    )
    top = height - cells.shape[0] * MOTION_CELL if row else 0
    left = width - cells.shape[1] * MOTION_CELL if column else 0
    cuts = np.array([[0, crop.top, 0], [crop.left, 0, crop.right], [0, crop.bottom, 0]])
    _, above, _, before, _, after, _, below, _ = (int(cut) for cut in turned(cuts, picture).flat)
    size = (height - above - below, width - before - after)
    return Motion(motion.refreshed, cells, top - above, left - before, size)


def _grid(height: int, width: int) -> tuple[int, int]:
    return -(-height // MOTION_CELL), -(-width // MOTION_CELL)
