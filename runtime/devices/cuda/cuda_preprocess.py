"""Frames resized on the CPU, for a device that keeps them elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vicort.runtime.devices.preprocess import Preprocessor

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.arrays import DeviceArray
    from vicort.runtime.devices.cuda.cuda_device import CudaDevice
    from vicort.runtime.devices.cuda.streams import CudaStream


class UploadingPreprocessor:
    """Like `Preprocessor`, into an array on the device."""

    def __init__(self, device: CudaDevice, preprocessor: Preprocessor) -> None:
        self._device, self._preprocessor = device, preprocessor
        self._frames = np.empty((0,), np.uint8)

    def __call__(self, frames: Sequence[np.ndarray], out: DeviceArray, stream: CudaStream) -> None:
        """frames: F arrays [h, w, 3] uint8 RGB, each of any size; out: [F, height, width, 3]
        uint8."""
        if self._frames.size < out.size:
            self._frames = np.empty((out.size,), np.uint8)
        resized = self._frames[: out.size].reshape(out.shape)
        self._preprocessor(frames, resized)
        self._device.upload(out, resized, stream)
