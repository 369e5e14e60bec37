"""Device memory that is taken once and used again: after warm-up no call allocates."""

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
ALIGNMENT = 256  # bytes: what TensorRT asks of its addresses
_working = threading.local()  # .stream: whose work this thread is doing


def current_stream() -> CudaStream | None:
    """The stream whose work the calling thread is doing."""
    return getattr(_working, "stream", None)


def set_current_stream(stream: CudaStream | None) -> CudaStream | None:
    """Returns the one before."""
    before = current_stream()
    _working.stream = stream
    return before


@dataclass(eq=False)
class MemoryBlock:
    pointer: int
    size: int  # bytes
    # pinned: where a part (offset, bytes) is read to
    readbacks: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    last_uses: tuple[Any, ...] = ()  # events behind all that may have used it


class Allocation:
    """The right to a block: when nobody refers to it any more, the block may be used again."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: MemoryBlock) -> None:
        self.block = block


class DeviceAllocator:
    """Blocks of one GPU. One that is let go is used again for the next of its size, behind all work
    that was on the way then."""

    def __init__(self, driver: Driver, limit: int | None = None) -> None:
        """limit: most bytes to take; None = what is free."""
        self.driver, self.limit = driver, limit
        self.reserved = 0  # bytes taken from the driver
        self.in_use = 0  # bytes of these that somebody holds
        self._streams: weakref.WeakSet[CudaStream] = weakref.WeakSet()
        self._let_go: deque[MemoryBlock] = deque()  # by finalizers, which may run anywhere
        self._idle: dict[int, deque[MemoryBlock]] = {}  # by size
        self._lock = threading.RLock()

    def watch(self, stream: CudaStream) -> None:
        """From now on this stream may use the memory."""
        with self._lock:
            self._streams.add(stream)

    def forget(self, stream: CudaStream) -> None:
        """The stream is done with all its work."""
        with self._lock:
            self._streams.discard(stream)

    def allocate(self, size: int, purpose: str) -> Allocation:
        """size: bytes. Raises DeviceError, with what there is, if there is no room."""
        size = max(-(-size // ALIGNMENT), 1) * ALIGNMENT
        stream = current_stream()
        if stream and stream.capturing:
            raise DeviceError(
                f"{purpose} asked for {size} bytes of device memory while work is captured: "
                "allocate before"
            )
        self._collect()
        with self._lock:
            block = self._reusable(size) or self._take(size, purpose)
            self.in_use += size
        self._wait_for(block.last_uses)
        block.last_uses = ()
        allocation = Allocation(block)
        weakref.finalize(allocation, self._let_go.append, block).atexit = False
        return allocation

    def _reusable(self, size: int) -> MemoryBlock | None:
        """The block that has been idle longest. A caller outside all streams would have to wait for
        its last uses: there must be none."""
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
        """Give back to the driver what nobody holds."""
        self._collect()
        with self._lock:
            self._release_idle()

    def _collect(self) -> None:
        """Make blocks that were let go idle, behind what all streams have been given by now."""
        blocks = drain(self._let_go)
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
        """The stream whose work asks waits; outside all streams the events are done."""
        if stream := current_stream():
            for event in events:
                self.driver.wait(stream.raw, event)

    def _take(self, size: int, purpose: str) -> MemoryBlock:
        if self.limit is None or self.reserved + size <= self.limit:
            try:
                return self._from_driver(size)
            except MemoryError:
                pass  # idle blocks of other sizes may be in the way
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
        available = self._free()
        return DeviceError(
            f"out of device memory: {purpose} asked for {_mb(size)} MB, {_mb(self.in_use)} MB "
            f"are in use, {_mb(available)} MB would fit: "
            f"lower memory.device_mb of the system by {_mb(size - available)} or more"
        )


class PinnedAllocator:
    """Host memory that copies are made from and to without waiting."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._let_go: deque[int] = deque()  # addresses

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array whose content is undefined. No copy may be on its way from or to it when its
        last view goes."""
        self.collect()
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        pointer = self.driver.allocate_pinned(size)
        raw = (ctypes.c_uint8 * size).from_address(pointer)
        weakref.finalize(raw, self._let_go.append, pointer).atexit = False
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)

    def collect(self) -> None:
        """Give back what nobody refers to."""
        for pointer in drain(self._let_go):
            self.driver.free_pinned(pointer)


def drain(queue: deque[T]) -> list[T]:
    """What is in a queue that other threads fill and empty too."""
    taken: list[T] = []
    while queue:
        try:
            taken.append(queue.popleft())
        except IndexError:
            break
    return taken


def _mb(size: int) -> str:
    return f"{max(size, 0) / 1e6:.1f}"
