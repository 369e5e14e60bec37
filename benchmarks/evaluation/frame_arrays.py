"""Videos that are arrays of frames in a NumPy file, as RVS-Movie has them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError
from vicort.runtime.sources.source import Source, Wants, Warn

SUFFIX = ".npy"


def is_frame_array(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX and path.is_file()


class FrameArraySource(Source):
    """Frames of an array [N, height, width, 3] uint8, RGB; frame i has the time i / fps."""

    def __init__(self, path: Path, *, fps: Fraction, warn: Warn | None = None) -> None:
        """The file is mapped, not read: a frame is read when it is wanted.

        Raises SourceError for a file that holds something else.
        """
        self._array = _mapped(path)
        self._fps = fps
        count = len(self._array)
        super().__init__(str(path), frames_total=count, duration=count / fps, warn=warn)

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        for index, image in enumerate(self._array):
            time = index / self._fps
            if wants is None or wants(time):
                yield Frame(np.array(image), time, index)


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"{path} is no NumPy array ({error}): give frames as [N, height, width, 3] uint8"
        ) from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise SourceError(
            f"{path} is an array {list(array.shape)} of {array.dtype}: give frames as "
            "[N, height, width, 3] uint8, RGB"
        )
    return array
