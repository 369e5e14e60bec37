"""Frames resized by PyTorch, for measurements where NVIDIA DALI is not installed.

For benchmarks only: the runtime takes DALI.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import numpy as np

from vicort.benchmarks.common.machine import version_of
from vicort.runtime.devices.device import Device
from vicort.runtime.devices.preprocess import Box, letterbox
from vicort.runtime.engines.engine_set import EngineSet


@cache
def has_dali() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nothing of NVIDIA's is installed
        return False


def resizer() -> str:
    """Who resizes frames in the measurements, for the report."""
    if has_dali():
        return f"NVIDIA DALI {version_of('nvidia-dali-cuda130') or ''}".strip()
    return "PyTorch, since NVIDIA DALI is not installed"


def with_a_resizer(engines: EngineSet) -> EngineSet:
    """The set, whose devices resize by PyTorch where DALI is not installed."""
    if has_dali():
        return engines
    new_device = engines.new_device

    def resizing(overlap: bool = True) -> Device:
        device = new_device(overlap)
        device.preprocessor = lambda size, threads: TorchPreprocessor(size)  # type: ignore[method-assign]
        return device

    engines.new_device = resizing  # type: ignore[method-assign]
    return engines


class TorchPreprocessor:
    """Resizes as `vicort.runtime.devices.preprocess.Preprocessor`, by a cubic filter with
    antialiasing, on the device of the output."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        """size: height and width in pixels of all frames that it returns, letterboxed; None: as
        each call says, stretched."""
        self._size = size

    def __call__(self, frames: Sequence[np.ndarray], out: Any, stream: Any = None) -> None:
        """frames: F arrays [h,w,3] uint8 RGB, of any size; out: [F,height,width,3] uint8, written
        in place in the order of `stream`: a NumPy array, or on a GPU a `DeviceArray`."""
        from vicort.benchmarks.gpu.inductor.inductor_engine import OnGpu, OnHost  # late: torch

        if isinstance(out, np.ndarray):
            self._resize(frames, OnHost().tensor(out))
            return
        side = OnGpu()
        with side.on(stream):
            self._resize(frames, side.tensor(out))

    def _resize(self, frames: Sequence[np.ndarray], out: Any) -> None:
        """out: a tensor [F,height,width,3] uint8. Frames of one size are resized at once."""
        import torch

        height, width = out.shape[1:3]
        start = 0
        for (old_height, old_width, _), group in groupby(frames, lambda frame: frame.shape):
            images = torch.from_numpy(np.stack(list(group)))
            if out.is_cuda:
                images = images.pin_memory().to(out.device, non_blocking=True)
            target = out[start : start + len(images)]
            whole = Box(0, 0, height, width)
            box = letterbox(old_height, old_width, height, width) if self._size else whole
            resized = torch.nn.functional.interpolate(
                images.permute(0, 3, 1, 2).float(),
                (box.height, box.width),
                mode="bicubic",
                antialias=True,
            )
            if box != whole:
                target.zero_()
            part = target[:, box.top : box.top + box.height, box.left : box.left + box.width]
            part.copy_(resized.round_().clamp_(0, 255).permute(0, 2, 3, 1))
            start += len(images)
