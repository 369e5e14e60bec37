"""A simulated GPU with a race detector: device memory is host memory, and streams are queues that
run as late, and in as adverse an order, as CUDA allows.

Nothing runs until the host waits; then streams advance in a random order from a seed, as far as
their events allow. So work with a missing wait reads memory that is not written yet, which is
poisoned with NaN, or with a number that is neither a slot nor a position. In addition every access
is checked against the order of events: two accesses of the same bytes, of which one is a write,
without an event between them are a race, even if this run happened to order them.

Kernels and engines are NumPy functions.
"""

from __future__ import annotations

import bisect
import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from support.fake_engines import FakeEngineSet

from vicort.runtime.devices.cuda import CudaDevice, CudaEvent, CudaStream, DeviceArray, Gpu
from vicort.runtime.devices.cuda.allocator import current_stream
from vicort.runtime.devices.cuda.loaded_kernels import NEEDED, LoadedKernels
from vicort.runtime.devices.int8_vectors import quantised
from vicort.runtime.kernels import CompiledKernel, Kernels, KernelSpec

# of each two bytes: NaN in float16, bfloat16, float32 and float64, and an int32 of two billion
POISON = 0x7FFF
GRAIN = 4  # bytes: races are told apart to this
MAX_STREAMS = 256
OUTPUTS = {
    "vision": ("features",),
    "tokens": ("kept", "count", "compact", "mean"),
    "llm": ("hidden", "k", "v", "q", "queries"),
    "head": ("logits",),
}


class Race(Exception):
    """Two accesses of the same memory that no event puts in order."""


class Misuse(Exception):
    """A call that a real driver would refuse, or take for undefined."""


@dataclass(eq=False)
class Region:
    """Memory, and who touched it last: for each grain the last write, and each stream's last
    read."""

    kind: str  # "device" | "pinned"
    raw: np.ndarray  # [size] uint8
    writer: np.ndarray = field(init=False)  # [grains] number of a stream
    written: np.ndarray = field(init=False)  # [grains] which of its operations, 0 = none
    # stream -> [grains] which of its operations
    read: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        grains = -(-self.raw.size // GRAIN)
        self.writer, self.written = np.zeros(grains, np.int16), np.zeros(grains, np.int64)

    @property
    def start(self):
        return self.raw.ctypes.data


@dataclass(eq=False)
class Operation:
    run: object  # called with nothing; touches memory through the driver
    label: str
    number: int = 0  # in its stream, from 1
    clock: np.ndarray | None = None  # [MAX_STREAMS] operations that come before it, by stream
    after: SimulatedEvent | None = None  # waits for this


@dataclass(eq=False)
class SimulatedStream:
    number: int
    urgent: bool
    queue: deque = field(default_factory=deque)
    issued: int = 0
    done: int = 0
    # what comes before its next operation
    clock: np.ndarray = field(default_factory=lambda: np.zeros(MAX_STREAMS, np.int64))
    # of that, what the host has waited for
    known: np.ndarray = field(default_factory=lambda: np.zeros(MAX_STREAMS, np.int64))
    captured: list | None = None
    captor: int | None = None  # thread


@dataclass(eq=False)
class SimulatedEvent:
    stream: SimulatedStream
    number: int
    clock: np.ndarray
    timing: bool
    known: np.ndarray | None = None  # what the host had waited for in the work before it
    at: int | None = None  # perf_counter_ns

    @property
    def is_done(self):
        return self.stream.done >= self.number


class SimulatedDriver:
    name = "simulated GPU"
    capability = (9, 0)
    multiprocessors = 4
    version = 13000

    def __init__(self, seed=0, total=1 << 31, lag=0.0):
        """lag: most seconds that the device takes its time, while other threads give it more to
        do."""
        self.total = total
        self.used = 0
        self.lag = lag
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []  # names of the threads that waited for the device
        self.log: list[tuple[str, int]] = []  # what ran, and on which stream
        self.failure: Exception | None = None
        self.watched = True  # whether races are looked for
        self._random = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._regions: list[Region] = []
        self._streams: list[SimulatedStream] = []
        # what threads that are no stream's have waited for
        self._host_clock = np.zeros(MAX_STREAMS, np.int64)
        # id of a copy that has not run -> its part of pinned memory
        self._pending: dict[int, tuple[int, int]] = {}
        self._running: tuple[SimulatedStream, Operation] | None = None

    # ---- memory ----

    def make_current(self):
        pass

    def memory(self):
        return self.total - self.used, self.total

    def allocate(self, size):
        self.counts["allocate"] += 1
        if self.used + size > self.total:
            raise MemoryError(f"{size} bytes")
        self.used += size
        return self._add("device", size)

    def allocate_pinned(self, size):
        self.counts["allocate_pinned"] += 1
        return self._add("pinned", size)

    def _add(self, kind, size):
        whole = np.empty(size + 256, np.uint8)
        offset = -whole.ctypes.data % 256
        region = Region(kind, whole[offset : offset + size])
        poison(region.raw)
        with self._lock:
            at = bisect.bisect(self._starts, region.start)
            self._starts.insert(at, region.start)
            self._regions.insert(at, region)
        return region.start

    def free(self, pointer):
        self._remove(pointer, "device")

    def free_pinned(self, pointer):
        with self._lock:
            size = self._region(pointer, 1).raw.size
            if any(
                first < pointer + size and pointer < last for first, last in self._pending.values()
            ):
                raise Misuse("pinned memory is freed under a copy")
        self._remove(pointer, "pinned")

    def _remove(self, pointer, kind):
        with self._lock:
            region = self._region(pointer, 1)
            if region.start != pointer or region.kind != kind:
                raise Misuse(f"{pointer:#x} was not allocated as {kind} memory")
            poison(region.raw)
            at = self._starts.index(pointer)
            del self._starts[at], self._regions[at]
            if kind == "device":
                self.used -= region.raw.size

    def _region(self, pointer, size):
        at = bisect.bisect(self._starts, pointer) - 1
        if at < 0 or pointer + size > self._starts[at] + self._regions[at].raw.size:
            raise Misuse(f"{size} bytes at {pointer:#x} are not allocated")
        return self._regions[at]

    def bytes_at(self, pointer, size, *, write=False, watched=True):
        """[size] uint8, for an operation that runs; the access is checked."""
        region = self._region(pointer, max(size, 1))
        start = pointer - region.start
        if size and watched and self.watched:
            self._check(region, slice(start // GRAIN, -(-(start + size) // GRAIN)), write)
        return region.raw[start : start + size]

    def array_at(self, array: DeviceArray, *, write=False, watched=True):
        """A NumPy array over an array of the device, for an operation that runs."""
        return (
            self.bytes_at(array.pointer, array.nbytes, write=write, watched=watched)
            .view(array.dtype)
            .reshape(array.shape)
        )

    def _check(self, region, grains, write):
        stream, operation = self._running
        late = region.written[grains] > operation.clock[region.writer[grains]]
        if late.any():
            other = int(region.writer[grains][late][0])
            raise Race(
                f"{operation.label} on stream {stream.number} against a write on stream {other}: "
                "no event between them"
            )
        if write:
            for other, read in region.read.items():
                if (read[grains] > operation.clock[other]).any():
                    raise Race(
                        f"{operation.label} on stream {stream.number} writes what stream {other} "
                        "may still read"
                    )
            region.writer[grains], region.written[grains] = stream.number, operation.number
        else:
            region.read.setdefault(stream.number, np.zeros_like(region.written))[grains] = (
                operation.number
            )

    # ---- streams and events ----

    def create_stream(self, urgent):
        with self._lock:
            stream = SimulatedStream(len(self._streams), urgent)
            self._streams.append(stream)
            return stream

    def close_stream(self, stream):
        with self._lock:
            if stream.queue:
                raise Misuse(f"stream {stream.number} is closed with work on it")

    def handle(self, stream):
        return stream.number + 1

    def stream_of(self, handle):
        return self._streams[handle - 1]

    def enqueue(self, stream, run, label, after=None):
        """Put an operation on a stream; its number there."""
        with self._lock:
            if self.failure:
                raise self.failure
            if stream.captured is not None:
                if stream.captor != threading.get_ident():
                    raise Misuse(
                        f"{label} on stream {stream.number}, which another thread captures"
                    )
                if after is not None:
                    raise Misuse("a wait for work outside of a capture")
                stream.captured.append((run, label))
                return 0
            np.maximum(stream.clock, self._host_clock, out=stream.clock)
            if after is not None:
                np.maximum(stream.clock, after.clock, out=stream.clock)
            stream.issued += 1
            stream.clock[stream.number] = stream.issued
            stream.queue.append(Operation(run, label, stream.issued, stream.clock.copy(), after))
            return stream.issued

    def record(self, stream, *, timing=False, blocking=False):
        with self._lock:
            if stream.captured is not None:
                raise Misuse("an event is recorded in a capture")
            event = SimulatedEvent(stream, 0, None, timing)

            def run():
                event.at = time.perf_counter_ns()

            event.number = self.enqueue(stream, run, "record")
            event.clock, event.known = (
                stream.clock.copy(),
                np.maximum(stream.known, self._host_clock),
            )
            return event

    def wait(self, stream, event):
        self.enqueue(stream, lambda: None, "wait", after=event)

    def is_done(self, event):
        """Asking may bring the device on a little."""
        with self._lock:
            for _ in range(self._random.integers(3)):
                ready = self._ready()
                if ready:
                    self._run_one(ready[self._random.integers(len(ready))])
            if event.is_done:
                self._know(event.clock)
            return event.is_done

    def synchronize(self, event):
        self.waits.append(threading.current_thread().name)
        if self.lag and not current_stream():
            time.sleep(self.lag * random.random())
        with self._lock:
            if event.stream.captured is not None and event.stream.captor == threading.get_ident():
                raise Misuse("the host waits in a capture")
            manner = self._random.integers(3)
            while not event.is_done:
                if self.failure:
                    raise self.failure
                self._run_one(self._choose(event.stream, manner))
            self._know(event.clock)
        time.sleep(0)

    def learn(self, event):
        """Whoever gets the value of some work knows what the host had waited for when the work
        returned."""
        with self._lock:
            self._know(event.known)

    def _know(self, clock):
        """A stream's work keeps what it learns to itself, until it returns. What any other thread
        learns, it may tell anybody."""
        working = current_stream()
        for known in (working.raw.clock, working.raw.known) if working else (self._host_clock,):
            np.maximum(known, clock, out=known)

    def elapsed_ms(self, start, end):
        if not (start.timing and end.timing and start.is_done and end.is_done):
            raise Misuse("the time between events that are not timed, or not done")
        return (end.at - start.at) / 1e6

    def _ready(self):
        return [
            s
            for s in self._streams
            if s.queue and (s.queue[0].after is None or s.queue[0].after.is_done)
        ]

    def _choose(self, wanted, manner):
        """A stream that can go on. manner: 0 = what is needed alone, 1 = all others first, 2 =
        any."""
        needed = wanted
        while (
            needed.queue and needed.queue[0].after is not None and not needed.queue[0].after.is_done
        ):
            needed = needed.queue[0].after.stream
        ready = self._ready()
        if manner == 1:
            ready = [
                stream for stream in ready if stream is not needed and stream is not wanted
            ] or [needed]
        return needed if manner == 0 else ready[self._random.integers(len(ready))]

    def _run_one(self, stream):
        operation = stream.queue.popleft()
        self._running = stream, operation
        try:
            operation.run()
        except Exception as error:
            self.failure = error  # as with CUDA, nothing works after that
            raise
        finally:
            self._running = None
        stream.done = operation.number
        if operation.label not in ("record", "wait"):
            self.log.append((operation.label, stream.number))

    # ---- copies ----

    def copy(self, target, source, size, stream):
        pinned = [p for p in (target, source) if self._region(p, size).kind == "pinned"]
        mark = object()

        def run():
            self._pending.pop(id(mark), None)
            np.copyto(self.bytes_at(target, size, write=True), self.bytes_at(source, size).copy())

        with self._lock:
            if target in pinned and not any(
                first < target + size and target < last for first, last in self._pending.values()
            ):
                # the host may not look now
                poison(
                    self._region(target, size).raw[target - self._region(target, size).start :][
                        :size
                    ]
                )
            for pointer in pinned:
                self._pending[id(mark)] = (pointer, pointer + size)
            run.mark = mark
            self.enqueue(stream, run, "copy")

    def fill(self, pointer, byte, size, stream):
        self._region(pointer, size)

        def run():
            self.bytes_at(pointer, size, write=True)[:] = byte

        self.enqueue(stream, run, "fill")

    # ---- kernels and graphs ----

    def load(self, cubin, function, shared_bytes):
        return function

    def launch(self, kernel, grid, threads, shared_bytes, stream_handle, args):
        assert grid[0] > 0
        assert threads % 32 == 0
        values = [value for _, value in args]
        # cubins are compiled for that
        assert all(value % 16 == 0 for kind, value in args if kind == "pointer")
        run = getattr(self.functions, kernel)
        self.enqueue(self.stream_of(stream_handle), lambda: run(grid, *values), kernel)

    def begin_capture(self, stream):
        with self._lock:
            self.counts["capture"] += 1
            stream.captured, stream.captor = [], threading.get_ident()

    def end_capture(self, stream):
        with self._lock:
            graph, stream.captured, stream.captor = stream.captured, None, None
            return graph

    def abandon_capture(self, stream):
        with self._lock:
            stream.captured = stream.captor = None

    def launch_graph(self, graph, stream):
        self.counts["replay"] += 1
        with self._lock:
            for run, label in graph:
                self.enqueue(stream, run, label)

    def check_lost(self):
        pass

    def close_graph(self, graph):
        graph.clear()


def poison(raw):
    """raw: [n] uint8"""
    even = raw.size // 2 * 2
    raw[:even].view(np.uint16)[:] = POISON
    raw[even:] = POISON & 0xFF


def bare(array):
    """An array that does not keep its memory alive: work that is on its way knows addresses
    alone."""
    return DeviceArray(None, array.pointer, array.shape, array.dtype)


def simulated_kernels(gpu, model, dtype, kv="float"):
    """The kernels that move tokens and positions into pages: the real `LoadedKernels`, on cubins
    that are NumPy functions."""
    arguments = {"scatter_tokens": ("pointer",) * 6 + ("i32",), "set_places": ("pointer",) * 3}
    compiled = tuple(
        CompiledKernel(
            kernel=name,
            form=form,
            architecture=90,
            file=name,
            function=name,
            warps=4,
            shared_bytes=0,
            arguments=arguments.get(name, ()),
            constants={},
        )
        # engines are functions as a whole here: attention is never launched
        for name, form in NEEDED
    )
    spec = KernelSpec.model_construct(
        page_tokens=model.page_tokens, frequencies=(1.0,), positions=0, kv=kv
    )
    gpu.driver.functions = PageFunctions(gpu.driver, model, np.dtype(dtype), kv)
    kernels = Kernels("simulated", spec, {}, compiled, {each.file: b"" for each in compiled})
    return LoadedKernels(
        kernels,
        capability=gpu.capability,
        multiprocessors=gpu.multiprocessors,
        launcher=gpu.launcher,
    )


class PageFunctions:
    """One block of a kernel's grid after the other."""

    def __init__(self, driver, model, dtype, kv):
        self._driver = driver
        self._model = model
        self._dtype = dtype
        self._pool_dtype = np.dtype(np.int8) if kv == "int8" else dtype

    def _at(self, pointer, shape, dtype, write=False):
        return self._driver.array_at(DeviceArray(None, pointer, shape, dtype), write=write)

    def scatter_tokens(self, grid, k, v, slots, cells, pool, scales, rows):
        m, (count, layers, _) = self._model, grid
        keys, values = (
            self._at(new, (layers, rows, m.kv_heads, m.head_dim), self._dtype) for new in (k, v)
        )
        slot, cell = (self._at(numbers, (count,), np.int32) for numbers in (slots, cells))
        vectors = (layers, m.kv_heads, 2, m.page_tokens)
        for i in range(count):
            target = self._page(pool, slot[i], (*vectors, m.head_dim), self._pool_dtype)
            for side, new in enumerate((keys, values)):
                numbers = new[:, i]
                if scales:
                    steps = self._page(scales, slot[i], vectors, np.dtype(np.float32))
                    numbers, steps[:, :, side, cell[i]] = quantised(numbers)
                target[:, :, side, cell[i]] = numbers

    def _page(self, pointer, slot, shape, dtype):
        size = int(np.prod(shape)) * dtype.itemsize
        return self._at(pointer + int(slot) * size, shape, dtype, write=True)

    def set_places(self, grid, slots, places, where):
        count, tokens = grid[0], self._model.page_tokens
        slot, new = (
            self._at(slots, (count,), np.int32),
            self._at(places, (count, tokens, 3), np.int32),
        )
        for i in range(count):
            self._at(where + int(slot[i]) * tokens * 12, (tokens, 3), np.int32, write=True)[:] = (
                new[i]
            )


class ObservedEvent(CudaEvent):
    def enqueued(self):
        value, point = self.placed.result()
        self.driver.learn(point)
        return value


class ObservedStream(CudaStream):
    """Tells the driver who learns what on the host: an order of events that no call of CUDA
    shows."""

    def run(self, work, *args):
        return ObservedEvent(self._driver, super().run(work, *args).placed)

    def run_first(self, work, *args):
        return ObservedEvent(self._driver, super().run_first(work, *args).placed)

    def wait(self, event, *, first=False):
        super().wait(event, first=first)
        event.enqueued()


class SimulatedDevice(CudaDevice):
    stream_type = ObservedStream


class SimulatedEngine:
    """A graph as a function of NumPy arrays, which reads and writes device memory when its turn
    comes.

    Shapes and addresses that come a second time are captured in a graph, and replayed from then on.
    """

    def __init__(self, name, function, driver):
        self.name = name
        self.function = function
        self._driver = driver
        self.shapes: list[dict[str, tuple[int, ...]]] = []  # of each run's bindings
        self._graphs: dict[tuple, object] = {}

    def enqueue(self, bindings, stream):
        return stream.run(self._enqueue, dict(bindings), stream)

    def _enqueue(self, bindings, stream):
        key = (
            id(stream),
            *((name, array.pointer, array.shape) for name, array in bindings.items()),
        )
        if self._graphs.get(key) is None:
            if key in self._graphs:
                self._graphs[key] = stream.capture(lambda: self._put(bindings, stream))
            else:
                self._graphs[key] = None
                self._put(bindings, stream)
                return
        self._graphs[key].launch(stream)

    def _put(self, bindings, stream):
        addresses = {name: bare(array) for name, array in bindings.items()}
        self._driver.enqueue(stream.raw, lambda: self._run(addresses), self.name)

    def _run(self, bindings):
        self.shapes.append({name: array.shape for name, array in bindings.items()})
        outputs, at = OUTPUTS[self.name], self._driver.array_at
        # of which the table's slots are read, and no others
        paged = [name for name in ("pool", "scales", "where") if name in bindings]
        arrays = {
            name: at(array, write=name in outputs, watched=name not in paged)
            for name, array in bindings.items()
        }
        if "table" in arrays:
            for slot in np.unique(arrays["table"][arrays["table"] >= 0]).tolist():
                for name in paged:
                    at(bindings[name][slot : slot + 1])
        for name in outputs:
            poison(arrays[name].reshape(-1).view(np.uint8))
        inputs = {name: array for name, array in arrays.items() if name not in outputs}
        for name, value in self.function(**inputs, **dict.fromkeys(outputs)).items():
            assert arrays[name].shape == value.shape, (name, arrays[name].shape, value.shape)
            arrays[name][...] = value


class SimulatedEngineSet(FakeEngineSet):
    """`FakeEngineSet` on a simulated GPU: the same functions, so the same answers to the last
    bit."""

    def __init__(self, seed=0, order=0, lag=0.0, kv="float", **model_changes):
        """order: seed of the order in which streams advance; lag: of `SimulatedDriver`."""
        super().__init__(seed, kv, **model_changes)
        self.driver = SimulatedDriver(order, lag=lag)
        self.gpu = Gpu(self.driver)
        self.kernels = simulated_kernels(self.gpu, self.model, self.dtype, self.manifest.kv)
        for name in ("vision", "tokens", "llm", "head"):
            setattr(self, name, SimulatedEngine(name, getattr(self, name).function, self.driver))

    def new_device(self, overlap=True):
        return SimulatedDevice(self.gpu, self.kernels, threads=overlap, resize_on="cpu")
