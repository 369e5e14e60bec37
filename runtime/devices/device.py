"""Devices: ordered streams of work, events in them, and the memory that they work on.

The scheduler knows these verbs and nothing else. `HostDevice` keeps them with worker threads and
NumPy arrays, `CudaDevice` (cuda.py) with CUDA streams and device memory. On the host a stream's
work is done when it returns; on CUDA it has then only been *enqueued*, so whoever needs the result
on another stream waits there with `Stream.wait`, and whoever needs it on the host calls
`Device.read`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.slots import HostPool, Pool

ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads want


class Array(Protocol):
    """Memory of a device, contiguous: a NumPy array, or a `DeviceArray` of the same look."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Self:
        """A part along the first axis."""
        ...

    def reshape(self, shape: tuple[int, ...], /) -> Self: ...


class Event(Protocol):
    """A point in a stream."""

    def result(self) -> Any:
        """Wait, on the host, until the stream has come there; gives what the work returned, raises
        what it raised."""
        ...

    def value(self) -> Any:
        """The same as soon as the host has it: the device may still be at what the work
        enqueued."""
        ...


class Mark(Protocol):
    """A moment in a stream, for stage times and traces."""

    def ns(self) -> int | None:
        """When the stream came there, on the clock of `time.perf_counter_ns`; None while it has
        not."""
        ...


class Stream(Protocol):
    """Work in order. All verbs but `submit`, `synchronize` and `close` are for the stream's own
    work to call."""

    name: str

    def submit(self, work: Callable[..., Any], *args: Any) -> Event:
        """Run `work` behind all that was submitted before; from inside the stream's own work, at
        once."""
        ...

    def wait(self, event: Event) -> None:
        """What follows comes after `event`, of whatever stream. Raises what the work behind the
        event raised."""
        ...

    def record(self) -> Event:
        """An event behind all work so far."""
        ...

    def mark(self) -> Mark: ...

    def notify(
        self,
        work: Callable[..., Any],
        *args: Any,
        failed: Callable[[BaseException], Any] | None = None,
    ) -> None:
        """Call `work` on the host once all work so far is done; calls keep their order. `failed` is
        called instead if the device broke."""
        ...

    def synchronize(self) -> None:
        """Wait, on the host, for all work submitted so far."""
        ...

    def close(self) -> None: ...


class Device(Protocol):
    urgency: Urgency

    def stream(self, name: str, urgent: bool = False) -> Stream: ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An `Array` whose content is undefined."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any: ...

    def pool(self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False) -> Pool:
        """Pages that engines can read. by_head: whether each layer and head may hold other tokens
        than the next."""
        ...

    def host_pool(
        self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False
    ) -> Pool:
        """Pages in the host's memory, which move from and to the device's."""
        ...

    def preprocessor(self, height: int, width: int, threads: int) -> Any:
        """Of frames to [F, height, width, 3] uint8 in this device's memory: called with (frames,
        out, stream)."""
        ...

    def upload(self, target: Any, source: np.ndarray, stream: Stream) -> None:
        """Host to device; `source` may change as soon as this returns."""
        ...

    def copy(self, target: Any, source: Any, stream: Stream) -> None:
        """Within the device."""
        ...

    def read(self, stream: Stream, *arrays: Any) -> tuple[np.ndarray, ...]:
        """Wait for the stream, and see arrays on the host. What is seen stays valid until the same
        arrays are written or read again."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class HostEvent:
    future: Future

    def result(self, timeout: float | None = None) -> Any:
        return self.future.result(timeout)

    def value(self) -> Any:
        return self.future.result()


class _Immediate:
    """What is simple where work is done when it returns."""

    def wait(self, event: Event) -> None:
        event.result()

    def record(self) -> Event:
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
    """Work in order, on a thread of its own. Work submitted from that thread itself runs at once,
    inside its caller."""

    def __init__(self, name: str, urgency: Urgency, urgent: bool) -> None:
        self.name = name
        self._urgency, self._urgent = urgency, urgent
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._thread: int | None = None

    def submit(self, work: Callable[..., Any], *args: Any) -> HostEvent:
        if threading.get_ident() == self._thread:
            return _done(work(*args))
        return HostEvent(self._executor.submit(self._run, work, *args))

    def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        self._thread = threading.get_ident()
        if not self._urgent:
            self._urgency.give_way()
        return work(*args)

    def synchronize(self) -> None:
        self.submit(lambda: None).result()

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


class InlineStream(_Immediate):
    """A stream without a thread: its work runs at once, in its caller. The sequential twin runs on
    it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def submit(self, work: Callable[..., Any], *args: Any) -> HostEvent:
        return _done(work(*args))

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class HostMark:
    at: int  # perf_counter_ns

    def ns(self) -> int:
        return self.at


class Urgency:
    """While urgent work runs, ordinary streams start nothing new: the host's form of stream
    priority."""

    def __init__(self) -> None:
        self._running = 0
        self._idle = threading.Condition()

    @contextmanager
    def hold(self) -> Iterator[None]:
        with self._idle:
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def give_way(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)


class HostDevice:
    """Streams and buffers in the host's memory.

    `threads=False` makes every stream an `InlineStream`: the plain, sequential device.
    """

    def __init__(self, threads: bool = True) -> None:
        self.threads = threads
        self.urgency = Urgency()
        self._streams: list[Stream] = []

    def stream(self, name: str, urgent: bool = False) -> Stream:
        stream = HostStream(name, self.urgency, urgent) if self.threads else InlineStream(name)
        self._streams.append(stream)
        return stream

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An aligned array whose memory the system commits only where it is touched."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.empty(size + ALIGNMENT, np.uint8)
        offset = -raw.ctypes.data % ALIGNMENT
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

    def preprocessor(self, height: int, width: int, threads: int) -> Preprocessor:
        return Preprocessor(height, width, threads=threads)

    def upload(self, target: np.ndarray, source: np.ndarray, stream: Stream) -> None:
        np.copyto(target, source)

    def copy(self, target: np.ndarray, source: np.ndarray, stream: Stream) -> None:
        np.copyto(target, source)

    def read(self, stream: Stream, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return arrays

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def _done(result: Any) -> HostEvent:
    future: Future = Future()
    future.set_result(result)
    return HostEvent(future)
