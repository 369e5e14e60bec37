"""The host as a device: worker threads for streams, NumPy arrays for memory."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.device import Array, Mark, Stream, StreamEvent
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.devices.pages import HostPool, as_numpy
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.devices.work_queue import WorkQueue
from vicort.runtime.manifest import ModelSpec

CACHE_LINE = 64  # bytes, also the width of an AVX-512 load
# Bytes from which an array is a mapping of its own, which goes back to the system when it is freed.
# From the heap it would go back only where nothing lies behind it.
MAPPED = 1 << 20
HUGE_PAGES = 1 << 22  # bytes from which NumPy, too, asks for huge pages


@dataclass(frozen=True)
class HostEvent:
    future: Future

    def done(self, timeout: float | None = None) -> Any:
        return self.future.result(timeout)

    def enqueued(self) -> Any:
        return self.future.result()


class _Immediate:
    """Methods that are trivial where work is done when it returns."""

    def wait(self, event: StreamEvent, *, first: bool = False) -> None:
        event.done()

    def record(self) -> StreamEvent:
        return _done(None)

    def mark(self) -> Mark:
        return HostMark(time.perf_counter_ns())

    def notify(
        self,
        work: Callable[..., Any],
        *args: Any,
        failed: Callable[[BaseException], Any] | None = None,
    ) -> None:
        work(*args)


class HostStream(_Immediate):
    """Work in order on one worker thread. Work submitted from that thread runs at once, in its
    caller."""

    def __init__(self, name: str, urgency: Urgency, urgent: bool) -> None:
        self.name = name
        self._work = WorkQueue(name, None if urgent else urgency)

    def run(self, work: Callable[..., Any], *args: Any) -> HostEvent:
        if self._work.here:
            return _done(work(*args))
        return HostEvent(self._work.put(work, *args))

    def run_first(self, work: Callable[..., Any], *args: Any) -> HostEvent:
        return HostEvent(self._work.put_first(work, *args))

    def wait(self, event: StreamEvent, *, first: bool = False) -> None:
        if first and isinstance(event, HostEvent):
            self._work.wait(event.future)
        event.done()

    def synchronize(self) -> None:
        self.run(lambda: None).done()

    def close(self) -> None:
        # the work in progress may be what closes the stream: its thread ends by itself after it
        self._work.close(wait=not self._work.here)


class InlineStream(_Immediate):
    """A stream without a thread: its work runs at once, in its caller. The sequential pipeline uses
    it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, work: Callable[..., Any], *args: Any) -> HostEvent:
        return _done(work(*args))

    run_first = run

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class HostMark:
    at: int  # perf_counter_ns

    def ns(self) -> int:
        return self.at


class HostDevice:
    """Streams and arrays on the host. threads=False: every stream is an `InlineStream`."""

    def __init__(self, threads: bool = True) -> None:
        self.threads = threads
        self.urgency = Urgency()
        self._streams: list[Stream] = []

    def stream(self, name: str, urgent: bool = False) -> Stream:
        stream = HostStream(name, self.urgency, urgent) if self.threads else InlineStream(name)
        self._streams.append(stream)
        return stream

    def memory(self) -> MachineMemory:
        return MachineMemory(host_memory())

    def check(self) -> None:
        pass

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array aligned to a cache line. The system commits its memory on first use."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size >= MAPPED:
            return _mapped(size).view(dtype).reshape(shape)
        raw = np.empty(size + CACHE_LINE, np.uint8)
        offset = -raw.ctypes.data % CACHE_LINE
        return raw[offset : offset + size].view(dtype).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        array = self.empty(shape, dtype)
        array[:] = 0
        return array

    def pool(
        self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False
    ) -> HostPool:
        return HostPool(self.empty, model, pages, dtype, by_head)

    host_pool = pool

    def preprocessor(self, size: tuple[int, int] | None, threads: int) -> Preprocessor:
        height, width = size or (None, None)
        return Preprocessor(height, width, threads=threads)

    def upload(self, target: Array, source: np.ndarray, stream: Stream) -> None:
        np.copyto(as_numpy(target), source)

    def copy(self, target: Array, source: Array, stream: Stream) -> None:
        np.copyto(as_numpy(target), as_numpy(source))

    def read(self, stream: Stream, *arrays: Array) -> tuple[np.ndarray, ...]:
        return tuple(map(as_numpy, arrays))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def _mapped(size: int) -> np.ndarray:
    """[size] uint8 in anonymous memory, aligned to a page."""
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size / 1e6:.0f} MB are not free") from error
    if size >= HUGE_PAGES:
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _done(result: Any) -> HostEvent:
    future: Future = Future()
    future.set_result(result)
    return HostEvent(future)
