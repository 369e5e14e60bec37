"""Loads kernels from cubins, launches them, and holds their constants on one GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from vicort.runtime.devices.cuda.allocator import DeviceAllocator, PinnedAllocator
from vicort.runtime.devices.cuda.arrays import DeviceArray
from vicort.runtime.devices.cuda.driver import Arguments, Driver


class GpuLauncher:
    """Implements `Launcher`. Kernels and constants live as long as the launcher."""

    def __init__(self, driver: Driver, memory: DeviceAllocator, pinned: PinnedAllocator) -> None:
        self._driver = driver
        self._memory = memory
        self._pinned = pinned
        self._constants: list[DeviceArray] = []

    def load(self, cubin: bytes, function: str, shared_bytes: int) -> Any:
        """shared_bytes: maximum dynamic shared memory of a launch."""
        return self._driver.load(cubin, function, shared_bytes)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream_handle: int,
        args: Arguments,
    ) -> None:
        self._driver.launch(kernel, grid, threads, shared_bytes, stream_handle, args)

    def constant(self, data: bytes) -> int:
        """Address of a copy of `data` in device memory, complete when this returns."""
        allocation = self._memory.allocate(len(data), "constants of kernels")
        staged = self._pinned.empty((len(data),), np.uint8)
        staged[:] = np.frombuffer(data, np.uint8)
        stream = self._driver.create_stream(urgent=False)
        self._driver.copy(allocation.block.pointer, staged.ctypes.data, len(data), stream)
        self._driver.synchronize(self._driver.record(stream))
        self._driver.close_stream(stream)
        self._constants.append(
            DeviceArray(allocation, allocation.block.pointer, (len(data),), np.uint8)
        )
        return allocation.block.pointer
