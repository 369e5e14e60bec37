"""Frames in memory that two processes share, in slots of one size."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections import deque
from typing import Any

import numpy as np

from vicort.runtime.core import MOTION_CELL, Motion

RING_BYTES = 64 << 20  # of all slots, where more than one fits
MAX_SLOTS = 256
MAX_GIVEN = 16  # slots that the writer has at a time
SPARE_SLOTS = 4  # that stay free: frames that would take them are copied
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # who reads cannot be cut off by a smaller file
ALIGNED = 64  # bytes


def slot_bytes(height: int, width: int, cells: int = 0) -> int:
    """Bytes of a slot for an RGB picture and the motion of its cells, or of `cells` if these are
    more: a picture that is cropped has cells for what is cut off, too."""
    own = (-(-height // MOTION_CELL)) * (-(-width // MOTION_CELL))
    return _aligned(height * width * 3) + _aligned(max(cells, own) * 4)


class FrameRing:
    """Slots that the decoder process writes and this process reads.

    The reader gives a slot, the writer fills it, the reader reads it.
    """

    def __init__(self, file: int, size: int, slots: int, number: int = 0) -> None:
        """file: of shared memory, closed here. size: bytes of a slot. number: of this ring among
        those of a source.

        Raises ValueError if the file does not hold so many slots for good.
        """
        self.size = size
        self.slots = slots
        self.number = number
        try:
            if not 0 < slots <= MAX_SLOTS or size <= 0:
                raise ValueError(f"{slots} slots of {size} bytes")
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) & SEALS != SEALS:
                raise ValueError("its size may change")
            self._memory = mmap.mmap(file, size * slots)
        finally:
            os.close(file)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._given = {0}  # the first picture comes with the ring
        self._free = deque(range(1, slots))

    def give(self, *, last: bool = False) -> int | None:
        """A free slot for the writer, or None if a few are given already or few are free. `last`:
        any free slot, to be read before another is given."""
        if last or (len(self._given) < MAX_GIVEN and len(self._free) > self._spare):
            self._given.add(slot := self._free.pop())
            return slot
        return None

    @property
    def _spare(self) -> int:
        return max(1, min(SPARE_SLOTS, self.slots // 2))

    def write(self, slot: int, image: np.ndarray, motion: Motion | None) -> list[Any]:
        """Write a picture and its motion; returns what `read` needs besides the slot."""
        height, width = image.shape[:2]
        start = slot * self.size
        pixels = self._bytes[start : start + image.nbytes].reshape(image.shape)
        np.copyto(pixels, image)
        return [height, width, self._write_motion(start + _aligned(image.nbytes), motion)]

    def read(self, slot: int, height: int, width: int, motion: Any) -> tuple[Any, Motion | None]:
        """The picture [height,width,3] uint8, and its motion.

        The picture lies in the slot, which is free again when the last array of it has gone. Where
        few slots are free, it is copied instead. Raises ValueError for a slot that was not given,
        and for what no slot can hold.
        """
        if slot not in self._given or not (
            height > 0 and width > 0 and slot_bytes(height, width) <= self.size
        ):
            raise ValueError(f"{width}x{height} in slot {slot}")
        start = slot * self.size
        shape = (height, width, 3)
        moved = self._read_motion(
            start + _aligned(math.prod(shape)), start + self.size, motion, (height, width)
        )
        self._given.remove(slot)
        image = np.asarray(_Held(self, slot, self._bytes.ctypes.data + start, shape))
        return image if len(self._free) >= self._spare else image.copy(), moved

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def _write_motion(self, start: int, motion: Motion | None) -> list[Any] | None:
        if motion is None:
            return None
        if motion.cells is None:
            return [motion.refreshed, None, motion.top, motion.left, motion.size]
        cells = self._bytes[start : start + motion.cells.nbytes].view(np.float32)
        np.copyto(cells.reshape(motion.cells.shape), motion.cells)
        shape = list(motion.cells.shape)
        return [motion.refreshed, shape, motion.top, motion.left, motion.size]

    def _read_motion(
        self, start: int, end: int, motion: Any, frame: tuple[int, int]
    ) -> Motion | None:
        """frame: height and width of the picture."""
        if motion is None:
            return None
        refreshed, shape, top, left, size = motion
        height, width = (int(side) for side in size or frame)
        stored = (height, width) if size else None
        if shape is None:
            return Motion(bool(refreshed), None, int(top), int(left), stored)
        rows, columns = (int(count) for count in shape)
        covered = (rows * MOTION_CELL + int(top), columns * MOTION_CELL + int(left))
        if (
            min(rows, columns) < 1
            or start + rows * columns * 4 > end
            or covered[0] < height
            or covered[1] < width
        ):
            raise ValueError(f"{rows}x{columns} cells of {width}x{height}")
        cells = self._bytes[start : start + rows * columns * 4].view(np.float32)
        return Motion(
            bool(refreshed), cells.reshape(rows, columns).copy(), int(top), int(left), stored
        )


class _Held:
    """Keeps a slot while an array of it exists. NumPy keeps the object that has the interface, and
    not an array in between."""

    def __init__(self, ring: FrameRing, slot: int, address: int, shape: tuple[int, ...]) -> None:
        self._ring = ring
        self._slot = slot
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
        }

    def __del__(self) -> None:
        self._ring.release(self._slot)


def new_ring(size: int, number: int = 0) -> tuple[FrameRing, int]:
    """A ring with slots of `size` bytes, and its file, to be closed by the caller."""
    slots = max(1, min(MAX_SLOTS, RING_BYTES // size))
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    file = os.memfd_create("vicort-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size * slots)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    return FrameRing(os.dup(file), size, slots, number), file


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
