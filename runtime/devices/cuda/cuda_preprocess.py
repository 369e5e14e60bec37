"""Frames resized on the CPU for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vicort.runtime.devices.preprocess import Preprocessor

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.cuda_device import CudaDevice
    from vicort.runtime.devices.cuda.streams import CudaStream
    from vicort.runtime.devices.device import Array


class UploadingPreprocessor:
    """A `Preprocessor` on the CPU, then an upload to the device."""

    def __init__(self, device: CudaDevice, preprocessor: Preprocessor) -> None:
        self._device = device
        self._preprocessor = preprocessor
        self._frames = np.empty((0,), np.uint8)

    def __call__(self, frames: Sequence[np.ndarray], out: Array, stream: CudaStream) -> None:
        """frames: F arrays [h,w,3] uint8 RGB, of any size; out: [F,height,width,3] uint8."""
        if self._frames.size < out.nbytes:
            self._frames = np.empty((out.nbytes,), np.uint8)
        resized = self._frames[: out.nbytes].reshape(out.shape)
        self._preprocessor(frames, resized)
        self._device.upload(out, resized, stream)
