"""CUDA streams, each with a thread that enqueues its work; events, marks, graphs and host
callbacks."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vicort.runtime.devices.cuda.allocator import set_current_stream
from vicort.runtime.devices.cuda.driver import Driver
from vicort.runtime.devices.cuda.staging import StagingRing
from vicort.runtime.devices.work_queue import WorkQueue

if TYPE_CHECKING:
    import numpy as np

    from vicort.runtime.devices.cuda.arrays import DeviceArray
    from vicort.runtime.devices.cuda.cuda_device import CudaDevice

# CUDA gives elapsed milliseconds in float32: a mark further from the anchor than this becomes the
# next anchor
ANCHOR_MS = 1000.0


@dataclass(frozen=True)
class CudaEvent:
    """Completion of stream work, in two steps: enqueued by the host, then executed by the
    device."""

    driver: Driver
    placed: Future  # of (result of the work, the driver's event after it)

    def done(self) -> Any:
        value, point = self.placed.result()
        self.driver.synchronize(point)
        return value

    def enqueued(self) -> Any:
        """The result of the work once its function has returned: the device may not have executed
        it yet."""
        return self.placed.result()[0]


class CudaGraph:
    """A CUDA graph. A launch uses the addresses that it was captured with."""

    def __init__(self, driver: Driver, graph: Any) -> None:
        self._driver = driver
        self._graph = graph
        self._close = weakref.finalize(self, driver.close_graph, graph)
        self._close.atexit = False

    def launch(self, stream: CudaStream) -> None:
        self._driver.launch_graph(self._graph, stream.raw)

    def close(self) -> None:
        """Launches in progress are completed."""
        self._close()


class CudaStream:
    """Work in order: enqueued by one thread, or by the caller if the device has no threads."""

    def __init__(self, device: CudaDevice, name: str, raw: Any, threads: bool) -> None:
        """raw: the driver's stream."""
        self.device = device
        self.name = name
        self.raw = raw
        self.handle = device.gpu.driver.handle(raw)
        self._driver = device.gpu.driver
        self._work = WorkQueue(name) if threads else None
        self.capturing = False
        # locked during capture: an event recorded by another thread would be captured too
        self._order = threading.RLock()
        self.ring = StagingRing(self)

    def run(self, work: Callable[..., Any], *args: Any) -> CudaEvent:
        if self._work and not self._work.here:
            return CudaEvent(self._driver, self._work.put(self._run_on_thread, work, *args))
        return self._event(self._run(work, *args))

    def run_first(self, work: Callable[..., Any], *args: Any) -> CudaEvent:
        if not self._work:
            return self.run(work, *args)
        return CudaEvent(self._driver, self._work.put_first(self._run_on_thread, work, *args))

    def _run_on_thread(self, work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        value = self._run(work, *args)
        return value, self._driver.record(self.raw, blocking=True)

    def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        before = set_current_stream(self)
        try:
            return work(*args)
        finally:
            set_current_stream(before)

    def _event(self, value: Any) -> CudaEvent:
        placed: Future = Future()
        placed.set_result((value, self._driver.record(self.raw, blocking=True)))
        return CudaEvent(self._driver, placed)

    def wait(self, event: Any, *, first: bool = False) -> None:
        """event: a CudaEvent. The host blocks only until the work of the event has been
        enqueued."""
        if first and self._work:
            self._work.wait(event.placed)
        _, point = event.placed.result()
        self._driver.wait(self.raw, point)

    def record(self) -> CudaEvent:
        return self._event(None)

    def record_from_outside(self) -> Any:
        """The driver's event after all work enqueued so far. May be called from any thread."""
        with self._order:
            return self._driver.record(self.raw)

    def mark(self) -> CudaMark:
        return CudaMark(self.device.gpu.clock, self._driver.record(self.raw, timing=True))

    def notify(
        self,
        work: Callable[..., Any],
        *args: Any,
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        """failed: called with the error if the device fails first or an earlier callback failed;
        without it the error is raised."""
        try:
            point = self._driver.record(self.raw, blocking=True)
            if self._work:
                self.device.callbacks.add(StreamCallback(point, work, args, failed))
                return
            self._driver.synchronize(point)
        except BaseException as error:
            if failed is None:
                raise
            failed(error)
            return
        work(*args)

    def finish(self) -> None:
        """Block the host until the device has done what this thread has enqueued."""
        self._driver.synchronize(self._driver.record(self.raw))

    def capture(self, work: Callable[[], Any]) -> CudaGraph:
        """Capture what `work` puts on this stream into a graph. Call from the stream's own work.

        Raises the exception of `work`, or DeviceError if something cannot be captured. The stream
        stays usable.
        """
        with self._order:
            self._driver.begin_capture(self.raw)
            self.capturing = True
            try:
                work()
            except BaseException:
                self._driver.abandon_capture(self.raw)
                raise
            finally:
                self.capturing = False
            return CudaGraph(self._driver, self._driver.end_capture(self.raw))

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        self.ring.upload(target, source)

    def synchronize(self) -> None:
        self.run(lambda: None).done()

    @property
    def here(self) -> bool:
        """Whether the caller is this stream's work, on its thread."""
        return self._work is not None and self._work.here

    def close(self) -> None:
        """Wait for the work in progress, unless that is the caller, and drop the rest."""
        if self._work:
            self._work.close(wait=not self.here)
        self.finish()


class GpuClock:
    """Converts device timestamps to the clock of `time.perf_counter_ns`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        stream = driver.create_stream(urgent=False)
        self._anchor = driver.record(stream, timing=True)
        driver.synchronize(self._anchor)
        self._anchor_ns = time.perf_counter_ns()
        driver.close_stream(stream)

    def ns(self, event: Any) -> int | None:
        """The time of an event, None if the device has not reached it. Events may be given in any
        order."""
        if not self._driver.is_done(event):
            return None
        with self._lock:
            elapsed = self._driver.elapsed_ms(self._anchor, event)
            # a finished event is not in the future
            at = min(self._anchor_ns + round(elapsed * 1e6), time.perf_counter_ns())
            if elapsed > ANCHOR_MS:
                self._anchor = event
                self._anchor_ns = at
            return at


@dataclass(frozen=True)
class CudaMark:
    clock: GpuClock
    event: Any

    def ns(self) -> int | None:
        return self.clock.ns(self.event)


@dataclass(frozen=True)
class StreamCallback:
    point: Any  # the driver's event
    work: Callable[..., Any]
    args: tuple[Any, ...]
    failed: Callable[[BaseException], None] | None


class CallbackThread:
    """A thread that waits for the device, then runs callbacks in the order in which they were
    added."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._pending: queue.SimpleQueue[StreamCallback | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    def add(self, callback: StreamCallback) -> None:
        """Raises the exception of an earlier callback."""
        if self._failure:
            raise self._failure
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="callbacks", daemon=True)
            self._thread.start()
        self._pending.put(callback)

    def close(self) -> None:
        """Pending callbacks are dropped."""
        self._closed = True
        self._pending.put(None)
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while callback := self._pending.get():
            if not self._closed:
                self._call_back(callback)

    def _call_back(self, callback: StreamCallback) -> None:
        try:
            self._driver.synchronize(callback.point)
        except BaseException as error:  # noqa: BLE001 - passed to `failed` and raised by the next `add`
            self._failure = error
            if callback.failed:
                callback.failed(error)
            return
        try:
            callback.work(*callback.args)
        except BaseException as error:  # noqa: BLE001 - raised by the next `add`
            self._failure = error
