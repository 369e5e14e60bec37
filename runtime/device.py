"""The host as a device: streams are ordered worker threads, events are futures, buffers are NumPy arrays.

`CudaDevice` will offer the same verbs on CUDA streams; the scheduler knows no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads want

Event = Future  # done when the work it was recorded behind is done; its result() raises what that work raised


class HostStream:
    """Work in order, on a thread of its own. Work submitted from that thread itself runs at once, inside its caller."""

    def __init__(self, name: str, urgency: Urgency, urgent: bool) -> None:
        self.name = name
        self._urgency, self._urgent = urgency, urgent
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._thread: int | None = None

    def submit(self, work: Callable[..., Any], *args: Any) -> Event:
        if threading.get_ident() == self._thread:
            return _run_now(work, *args)
        return self._executor.submit(self._run, work, *args)

    def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        self._thread = threading.get_ident()
        if not self._urgent:
            self._urgency.give_way()
        return work(*args)

    def synchronize(self) -> None:
        """Wait for all work submitted so far."""
        self.submit(lambda: None).result()

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


class InlineStream:
    """A stream without a thread: its work runs at once, in its caller. The sequential twin runs on it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def submit(self, work: Callable[..., Any], *args: Any) -> Event:
        return _run_now(work, *args)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


Stream = HostStream | InlineStream


class Urgency:
    """While urgent work runs, ordinary streams start nothing new: the host's form of stream priority."""

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

    def copy(self, target: np.ndarray, source: np.ndarray, stream: Stream) -> Event:
        return stream.submit(np.copyto, target, source)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def _run_now(work: Callable[..., Any], *args: Any) -> Event:
    event: Event = Future()
    event.set_result(work(*args))
    return event
