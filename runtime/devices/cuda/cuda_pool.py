"""Pages in device memory, and the host tier in pinned memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.cuda.allocator import DEVICE_ALIGNMENT
from vicort.runtime.devices.cuda.arrays import DeviceArray, as_device
from vicort.runtime.devices.device import Array, Pool
from vicort.runtime.devices.pages import (
    EMPTY,
    HostPool,
    as_numpy,
    is_int8,
    scales_of,
    shifted,
)
from vicort.runtime.manifest import ModelSpec

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.cuda_device import CudaDevice
    from vicort.runtime.devices.cuda.streams import CudaStream

PART = DEVICE_ALIGNMENT // 4  # int32 numbers: parts of one upload are aligned


class CudaPool:
    """Pages on the device. Positions are changed on the host first, then uploaded. All streams are
    CudaStreams."""

    def __init__(self, device: CudaDevice, model: ModelSpec, pages: int, dtype: DTypeLike) -> None:
        self._device = device
        self._max_rows = model.max_rows
        vectors = (pages, model.layers, model.kv_heads, 2, model.page_tokens)
        what = "the pool of pages"
        self.data = device.gpu.empty((*vectors, model.head_dim), dtype, what)
        self.scales = device.gpu.empty(vectors, np.float32, what) if is_int8(dtype) else None
        # 0xFF in every byte is EMPTY
        self.cell_positions = device.filled((pages, 1, 1, model.page_tokens, 3), np.int32, 0xFF)
        self.host_positions = np.full(self.cell_positions.shape, EMPTY, np.int32)
        self._lists: weakref.WeakKeyDictionary[CudaStream, _Lists] = weakref.WeakKeyDictionary()

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Any,
    ) -> None:
        self.host_positions[slots, 0, 0, cells] = positions
        pages = np.unique(slots)
        slot_list, cell_list, page_list, positions_list = self._upload(
            stream, slots, cells, pages, self.host_positions[pages]
        )
        kernels = self._device.kernels
        kernels.scatter_tokens(
            k=as_device(k).pointer,
            v=as_device(v).pointer,
            slots=slot_list,
            cells=cell_list,
            pool=self.data.pointer,
            count=len(slots),
            rows=k.shape[1],
            layers=k.shape[0],
            stream=stream.handle,
            scales=None if self.scales is None else self.scales.pointer,
        )
        kernels.set_places(
            slots=page_list,
            places=positions_list,
            where=self.cell_positions.pointer,
            count=len(pages),
            stream=stream.handle,
        )

    def clear(self, slots: Sequence[int], stream: Any) -> None:
        self.host_positions[list(slots)] = EMPTY
        self._upload_positions(slots, stream)

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Any
    ) -> None:
        move_pages(self._device, source.data, source_slots, self.data, slots, stream)
        if self.scales is not None:
            scales = scales_of(source)
            move_pages(self._device, scales, source_slots, self.scales, slots, stream)
        self.host_positions[list(slots)] = source.host_positions[list(source_slots)]
        self._upload_positions(slots, stream)

    def shift(self, slots: Sequence[int], step: np.ndarray, floor: int, stream: Any) -> None:
        self.host_positions[list(slots)] = shifted(self.host_positions[list(slots)], step, floor)
        self._upload_positions(slots, stream)

    def _upload_positions(self, slots: Sequence[int], stream: CudaStream) -> None:
        for first in range(0, len(slots), self._max_rows):
            some = np.asarray(slots[first : first + self._max_rows])
            page, place = self._upload(stream, some, self.host_positions[some])
            self._device.kernels.set_places(
                slots=page,
                places=place,
                where=self.cell_positions.pointer,
                count=len(some),
                stream=stream.handle,
            )

    def _upload(self, stream: CudaStream, *parts: np.ndarray) -> list[int]:
        """Device addresses of int32 lists, valid until the stream's next upload."""
        if stream not in self._lists:
            per_row = 3 + self.host_positions[0].size  # slot, cell, page, positions of the page
            self._lists[stream] = _Lists(self._device, self._max_rows * per_row + 4 * PART)
        return self._lists[stream].upload(stream, parts)


class PinnedPool(HostPool):
    """The host tier: whole pages are copied to and from it asynchronously."""

    def __init__(self, device: CudaDevice, model: ModelSpec, pages: int, dtype: DTypeLike) -> None:
        super().__init__(device.gpu.pinned.empty, model, pages, dtype)
        self._device = device

    def copy_from(
        self, source: Pool, source_slots: Sequence[int], slots: Sequence[int], stream: Any
    ) -> None:
        move_pages(self._device, source.data, source_slots, self.data, slots, stream)
        if self.scales is not None:
            scales = scales_of(source)
            move_pages(self._device, scales, source_slots, self.scales, slots, stream)
        self.host_positions[list(slots)] = source.host_positions[list(source_slots)]

    def write(
        self,
        slots: np.ndarray,
        cells: np.ndarray,
        k: Array,
        v: Array,
        positions: np.ndarray,
        stream: Any,
    ) -> None:
        raise TypeError("tokens are written on the device: the host tier takes whole pages")


def move_pages(
    device: CudaDevice,
    source: Array,
    source_slots: Sequence[int],
    target: Array,
    slots: Sequence[int],
    stream: CudaStream,
) -> None:
    """Copy pages between pools [P,…] on the device or in pinned memory, in the order of the stream.
    A page is one contiguous block."""
    page = math.prod(target.shape[1:]) * target.dtype.itemsize
    source_base, target_base = _address(source), _address(target)
    for source_slot, slot in zip(source_slots, slots, strict=True):
        device.gpu.driver.copy(
            target_base + int(slot) * page, source_base + int(source_slot) * page, page, stream.raw
        )


def _address(array: Array) -> int:
    return array.pointer if isinstance(array, DeviceArray) else as_numpy(array).ctypes.data


class _Lists:
    """Device memory of one stream for the lists of slots, cells and positions that its kernels
    read."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        """size: int32 numbers."""
        self._numbers = np.zeros(size, np.int32)
        self._array = device.empty((size,), np.int32)

    def upload(self, stream: CudaStream, parts: Sequence[np.ndarray]) -> list[int]:
        """Upload all parts at once. Returns their device addresses."""
        first, starts = 0, []
        for part in parts:
            self._numbers[first : first + part.size] = part.reshape(-1)
            starts.append(first)
            first += -(-part.size // PART) * PART
        stream.upload(self._array[:first], self._numbers[:first])
        return [self._array.pointer + start * 4 for start in starts]
