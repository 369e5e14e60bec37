"""Asynchronous uploads: sources are first copied to a ring of pinned memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from vicort.runtime.devices.cuda.allocator import DEVICE_ALIGNMENT

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.arrays import DeviceArray
    from vicort.runtime.devices.cuda.streams import CudaStream

FIRST_BYTES = 1 << 20
UPLOADS_AT_ONCE = 4  # uploads of the largest size so far that fit into the ring


class StagingRing:
    """The staging buffer of one stream, used only by its work. It grows to a few uploads of the
    largest size. The host waits only where the ring wraps onto an unfinished copy."""

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        self._driver = stream.device.gpu.driver
        self._pinned = stream.device.gpu.pinned
        self._memory = np.empty(0, np.uint8)
        self._head = 0
        # (start, end, event after the copy), oldest first
        self._copies: deque[tuple[int, int, Any]] = deque()

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(f"{source.dtype} {source.shape} cannot be uploaded into {target}")
        size = target.nbytes
        if not size:
            return
        start = self._allocate(-(-size // DEVICE_ALIGNMENT) * DEVICE_ALIGNMENT)
        staged = self._memory[start : start + size].view(source.dtype).reshape(source.shape)
        np.copyto(staged, source)
        self._driver.copy(target.pointer, staged.ctypes.data, size, self._stream.raw)
        self._copies.append((start, self._head, self._driver.record(self._stream.raw)))

    def _allocate(self, size: int) -> int:
        """Offset of `size` bytes that no copy reads any more."""
        if UPLOADS_AT_ONCE * size > self._memory.nbytes:
            self._grow(UPLOADS_AT_ONCE * size)
        start = self._head
        if start + size > self._memory.nbytes:
            # Copies after the head are of the previous lap, so older than the first copy of this
            # lap, for which the loop below waits.
            while self._copies and self._copies[0][0] >= self._head:
                self._copies.popleft()
            start = 0
        while self._copies and self._copies[0][0] < start + size and start < self._copies[0][1]:
            self._driver.synchronize(self._copies.popleft()[2])
        self._head = start + size
        return start

    def _grow(self, size: int) -> None:
        for _, _, event in self._copies:
            self._driver.synchronize(event)
        self._copies.clear()
        self._memory = self._pinned.empty((max(size, FIRST_BYTES),), np.uint8)
        self._head = 0
