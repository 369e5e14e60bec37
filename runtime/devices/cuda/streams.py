"""CUDA streams, each with a thread that puts its work on them; events, marks, graphs, and who tells
the host that work is done."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vicort.runtime.devices.cuda.allocator import set_current_stream
from vicort.runtime.devices.cuda.driver import Driver
from vicort.runtime.devices.cuda.staging import StagingRing

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.arrays import DeviceArray
    from vicort.runtime.devices.cuda.cuda_device import CudaDevice

# CUDA tells milliseconds in float32: further from its anchor than this, a mark becomes the next
# anchor
ANCHOR_MS = 1000.0


@dataclass(frozen=True)
class CudaEvent:
    """Behind some work of a stream: first the host has to put it there, then the device has to do
    it."""

    driver: Driver
    placed: Future  # of what the work returned, and the driver's event behind it

    def done(self) -> Any:
        value, point = self.placed.result()
        self.driver.synchronize(point)
        return value

    def enqueued(self) -> Any:
        """What the work returned, as soon as the host has it: the device may still be at what it
        enqueued."""
        return self.placed.result()[0]


class CudaGraph:
    """Recorded work: one call puts all of it on a stream. It reads and writes the addresses that it
    was recorded with."""

    def __init__(self, driver: Driver, graph: Any) -> None:
        self._driver, self._graph = driver, graph
        self._close = weakref.finalize(self, driver.close_graph, graph)
        self._close.atexit = False

    def launch(self, stream: CudaStream) -> None:
        self._driver.launch_graph(self._graph, stream.raw)

    def close(self) -> None:
        """Runs of it that are under way come to their end."""
        self._close()


class CudaStream:
    """Work in order: on a thread of its own, or in its caller where the device has no threads."""

    def __init__(self, device: CudaDevice, name: str, raw: Any, threads: bool) -> None:
        """raw: the driver's stream."""
        self.device = device
        self.name = name
        self.raw = raw
        self.handle = device.gpu.driver.handle(raw)
        self._driver = device.gpu.driver
        self._executor = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) if threads else None
        )
        self._thread: int | None = None
        self.capturing = False
        # held while work is captured: an event of another thread would be captured with it
        self._order = threading.RLock()
        self.ring = StagingRing(self)

    def run(self, work: Callable[..., Any], *args: Any) -> CudaEvent:
        if self._executor and threading.get_ident() != self._thread:
            return CudaEvent(self._driver, self._executor.submit(self._run_on_thread, work, *args))
        return self._event(self._run(work, *args))

    def _run_on_thread(self, work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        self._thread = threading.get_ident()
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

    def wait(self, event: Any) -> None:
        """event: a CudaEvent. The host waits only until the work behind it has been enqueued."""
        _, point = event.placed.result()
        self._driver.wait(self.raw, point)

    def record(self) -> CudaEvent:
        return self._event(None)

    def record_from_outside(self) -> Any:
        """The driver's event behind all that the stream was given so far. For any thread."""
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
        """failed: called with the error instead, if the device does not come to it or an earlier
        call failed; else that is raised."""
        try:
            point = self._driver.record(self.raw, blocking=True)
            if self._executor:
                self.device.watcher.watch(StreamCallback(point, work, args, failed))
                return
            self._driver.synchronize(point)
        except BaseException as error:
            if failed is None:
                raise
            failed(error)
            return
        work(*args)

    def finish(self) -> None:
        """The host waits for what this thread has put on the stream."""
        self._driver.synchronize(self._driver.record(self.raw))

    def capture(self, work: Callable[[], Any]) -> CudaGraph:
        """Record what `work` puts on this stream instead of running it. From inside the stream's
        own work.

        Raises what `work` raises, or DeviceError if something in it cannot be recorded; the stream
        goes on either way.
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

    def upload(self, target: DeviceArray, source: Any) -> None:
        self.ring.upload(target, source)

    def synchronize(self) -> None:
        self.run(lambda: None).done()

    def close(self) -> None:
        """Waits for the work under way, and drops the rest."""
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self.finish()


class GpuClock:
    """Moments of the device on the clock of `time.perf_counter_ns`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        stream = driver.create_stream(urgent=False)
        self._anchor = driver.record(stream, timing=True)
        driver.synchronize(self._anchor)
        self._anchor_ns = time.perf_counter_ns()
        driver.close_stream(stream)

    def ns(self, event: Any) -> int | None:
        """None while the device has not come to the event; events may be asked for in any order."""
        if not self._driver.is_done(event):
            return None
        with self._lock:
            elapsed = self._driver.elapsed_ms(self._anchor, event)
            # what is done is not to come
            at = min(self._anchor_ns + round(elapsed * 1e6), time.perf_counter_ns())
            if elapsed > ANCHOR_MS:
                self._anchor, self._anchor_ns = event, at
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
    """A thread that waits for the device and calls back, in the order of the calls."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._notices: queue.SimpleQueue[StreamCallback | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    def watch(self, notice: StreamCallback) -> None:
        """Raises what an earlier call failed with."""
        if self._failure:
            raise self._failure
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
            self._thread.start()
        self._notices.put(notice)

    def close(self) -> None:
        """Calls that are still due are left out."""
        self._closed = True
        self._notices.put(None)
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while notice := self._notices.get():
            if not self._closed:
                self._call_back(notice)

    def _call_back(self, notice: StreamCallback) -> None:
        try:
            self._driver.synchronize(notice.point)
        except BaseException as error:  # noqa: BLE001 - given to `failed` and the next call
            self._failure = error
            if notice.failed:
                notice.failed(error)
            return
        try:
            notice.work(*notice.args)
        except BaseException as error:  # noqa: BLE001 - raised by the next call
            self._failure = error
