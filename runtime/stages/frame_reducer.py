"""Bounds the memory of frames that wait, in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vicort.runtime.core import Frame
from vicort.runtime.devices.device import Device
from vicort.runtime.errors import SourceError
from vicort.runtime.frame_grid import Grid
from vicort.runtime.stages.stages import Preprocess

# of a frame that may wait as it is: a chunk of 16 frames then has at most 128 MB
MAX_WAITING_BYTES = 8_000_000


class FrameReducer:
    """Resizes large frames at once, to the size that their chunk will have: the same bits as if
    they were resized with their chunk."""

    def __init__(
        self,
        device: Device,
        preprocess: Preprocess,
        grid_of: Callable[[int, int], Grid],
        token_pixels: int,
    ) -> None:
        """grid_of: the grid of a frame of that height and width in pixels."""
        self._device = device
        self._preprocess = preprocess
        self._grid_of = grid_of
        self._token_pixels = token_pixels

    def __call__(self, frame: Frame) -> Frame:
        """The frame, or one with a smaller image, which knows the size that it had. Waits for the
        chunk that is being resized."""
        image = frame.image
        if not isinstance(image, np.ndarray) or image.nbytes <= MAX_WAITING_BYTES:
            return frame
        try:
            grid = self._grid_of(*image.shape[:2])
        except SourceError:  # the chunker refuses it
            return frame
        shape = (1, *grid.pixels(self._token_pixels), 3)
        out = self._device.empty(shape, np.uint8)
        self._preprocess.resize([image], out).done()
        (reduced,) = self._device.read(self._preprocess.stream, out)
        return replace(frame, image=np.array(reduced[0]), size=image.shape[:2])
