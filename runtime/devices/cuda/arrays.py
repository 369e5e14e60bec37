"""Arrays in device memory: an address, a shape and a type."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from vicort.runtime.devices.device import Array


class DeviceArray:
    """A contiguous array on the device. The array, its slices and reshapes keep the memory
    alive."""

    __slots__ = ("dtype", "memory", "pointer", "shape")
    flags = SimpleNamespace(c_contiguous=True)

    def __init__(self, memory: Any, pointer: int, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """memory: the owner of the bytes at `pointer`."""
        self.memory = memory
        self.pointer = pointer
        self.shape = shape
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> DeviceArray:
        """A slice along the first axis."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"an array on the device takes slices of its first axis, not {rows!r}")
        start, stop, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(
            self.memory,
            self.pointer + start * row,
            (max(stop - start, 0), *self.shape[1:]),
            self.dtype,
        )

    def reshape(self, shape: tuple[int, ...], /) -> DeviceArray:
        if math.prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} cannot take the shape {shape}")
        return DeviceArray(self.memory, self.pointer, tuple(shape), self.dtype)

    def __repr__(self) -> str:
        return f"DeviceArray({self.pointer:#x}, {self.shape}, {self.dtype})"


def as_device(array: Array) -> DeviceArray:
    """An array of a CUDA device, which is always a DeviceArray."""
    return cast(DeviceArray, array)
