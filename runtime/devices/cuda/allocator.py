"""Caching allocators for device memory and pinned memory: after warm-up no call reaches the
driver."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vicort.runtime.devices.cuda.driver import Driver
from vicort.runtime.errors import DeviceError

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.streams import CudaStream

T = TypeVar("T")
DEVICE_ALIGNMENT = 256  # bytes: TensorRT requires it of every address
_working = threading.local()  # .stream: the stream whose work this thread runs


def current_stream() -> CudaStream | None:
    """The stream whose work the calling thread runs; None outside of streams."""
    return getattr(_working, "stream", None)


def set_current_stream(stream: CudaStream | None) -> CudaStream | None:
    """Returns the previous one."""
    before = current_stream()
    _working.stream = stream
    return before


@dataclass(eq=False)
class MemoryBlock:
    pointer: int
    size: int  # bytes
    # (offset, bytes) -> pinned array that this part is read to
    readbacks: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    last_uses: tuple[Any, ...] = ()  # events after all work that may have used it


class Allocation:
    """Owns a block: once it is garbage collected, the allocator reuses the block."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: MemoryBlock) -> None:
        self.block = block


class DeviceAllocator:
    """Caching allocator of one GPU: a freed block is reused for the next request of its size,
    ordered after all work in flight when it was freed."""

    def __init__(self, driver: Driver, limit: int | None = None) -> None:
        """limit: maximum bytes to reserve; None = all that is free."""
        self.driver = driver
        self.limit = limit
        self.reserved = 0  # bytes allocated by the driver
        self.in_use = 0  # bytes of these that are allocated
        self._streams: weakref.WeakSet[CudaStream] = weakref.WeakSet()
        self._freed: deque[MemoryBlock] = deque()  # filled by finalizers, on any thread
        self._idle: dict[int, deque[MemoryBlock]] = {}  # by size
        self._lock = threading.RLock()

    def register(self, stream: CudaStream) -> None:
        """Add a stream that may use the memory."""
        with self._lock:
            self._streams.add(stream)

    def unregister(self, stream: CudaStream) -> None:
        """Remove a stream whose work is all done."""
        with self._lock:
            self._streams.discard(stream)

    def allocate(self, size: int, purpose: str) -> Allocation:
        """size: bytes; purpose: named in errors. Raises DeviceError if the memory does not
        suffice."""
        size = max(-(-size // DEVICE_ALIGNMENT), 1) * DEVICE_ALIGNMENT
        stream = current_stream()
        if stream and stream.capturing:
            raise DeviceError(
                f"{purpose} requested {size} bytes of device memory during graph capture: "
                "allocate before"
            )
        self._collect()
        with self._lock:
            block = self._reusable(size) or self._reserve(size, purpose)
            self.in_use += size
        self._wait_for(block.last_uses)
        block.last_uses = ()
        allocation = Allocation(block)
        weakref.finalize(allocation, self._freed.append, block).atexit = False
        return allocation

    def _reusable(self, size: int) -> MemoryBlock | None:
        """The block that has been idle longest; None if there is none of this size, or if the
        caller is outside of streams and would have to wait for the block's last uses."""
        idle = self._idle.get(size)
        if not idle or not (current_stream() or all(map(self.driver.is_done, idle[0].last_uses))):
            return None
        return idle.popleft()

    def available(self) -> int:
        """Bytes that could still be allocated."""
        self._collect()
        with self._lock:
            return self._free()

    def _free(self) -> int:
        free = self.driver.memory()[0] + self.reserved - self.in_use
        return free if self.limit is None else max(min(free, self.limit - self.in_use), 0)

    def trim(self) -> None:
        """Return unused blocks to the driver."""
        self._collect()
        with self._lock:
            self._release_idle()

    def _collect(self) -> None:
        """Make freed blocks idle. Their next use comes after all work submitted so far."""
        blocks = drain(self._freed)
        if not blocks:
            return
        with self._lock:
            streams = tuple(self._streams)
        last_uses = tuple(stream.record_from_outside() for stream in streams)
        with self._lock:
            for block in blocks:
                block.last_uses = last_uses
                self.in_use -= block.size
                self._idle.setdefault(block.size, deque()).append(block)

    def _wait_for(self, events: tuple[Any, ...]) -> None:
        """The current stream waits for the events; outside of streams they are done."""
        if stream := current_stream():
            for event in events:
                self.driver.wait(stream.raw, event)

    def _reserve(self, size: int, purpose: str) -> MemoryBlock:
        if self.limit is None or self.reserved + size <= self.limit:
            try:
                return self._from_driver(size)
            except MemoryError:
                pass  # idle blocks of other sizes may fill the memory
        self._release_idle()
        if self.limit is None or self.reserved + size <= self.limit:
            try:
                return self._from_driver(size)
            except MemoryError as error:
                raise self._out_of_memory(size, purpose) from error
        raise self._out_of_memory(size, purpose)

    def _from_driver(self, size: int) -> MemoryBlock:
        block = MemoryBlock(self.driver.allocate(size), size)
        self.reserved += size
        return block

    def _release_idle(self) -> None:
        for blocks in self._idle.values():
            for block in blocks:
                for event in block.last_uses:
                    self.driver.synchronize(event)
                self.driver.free(block.pointer)
                self.reserved -= block.size
        self._idle.clear()

    def _out_of_memory(self, size: int, purpose: str) -> DeviceError:
        available, (free, total) = self._free(), self.driver.memory()
        return DeviceError(
            f"out of device memory: {purpose} requested {_mb(size)} MB, {_mb(self.in_use)} MB "
            f"are in use, {_mb(available)} MB would fit (engines and other processes hold "
            f"{_mb(total - free - self.reserved)} of {_mb(total)} MB): "
            "lower the budget of pages (--memory, memory.device_mb) by "
            f"{_mb(size - available)} MB or more"
        )


class PinnedAllocator:
    """Allocator of page-locked host memory, for asynchronous copies."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._freed: deque[int] = deque()  # addresses

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array with undefined content. No copy from or to it may be in flight when its last
        view is garbage collected. Raises DeviceError if there is too little memory."""
        self.collect()
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        try:
            pointer = self.driver.allocate_pinned(size)
        except MemoryError as error:
            raise DeviceError(
                f"the driver cannot lock {_mb(size)} MB of the host's memory: give less "
                "--host-memory (memory.host_mb), or free memory of the machine"
            ) from error
        raw = (ctypes.c_uint8 * size).from_address(pointer)
        weakref.finalize(raw, self._freed.append, pointer).atexit = False
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)

    def collect(self) -> None:
        """Return freed memory to the driver."""
        for pointer in drain(self._freed):
            self.driver.free_pinned(pointer)


def drain(queue: deque[T]) -> list[T]:
    """Pop all items of a queue that other threads use too."""
    taken: list[T] = []
    while queue:
        try:
            taken.append(queue.popleft())
        except IndexError:
            break
    return taken


def _mb(size: int) -> str:
    return f"{max(size, 0) / 1e6:.1f}"
