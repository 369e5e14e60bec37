"""The driver of a real GPU, on `cuda.core`, and on `cuda.bindings` where that lacks a function."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from cuda.bindings import driver as cu
from cuda.core import (
    Device,
    Event,
    EventOptions,
    Kernel,
    LaunchConfig,
    ObjectCode,
    Stream,
    StreamOptions,
    launch,
)

from vicort.runtime.devices.cuda.driver import Arguments
from vicort.runtime.errors import DeviceError

# bytes of dynamic shared memory that a kernel may use without an attribute
SHARED_BYTES = 48 << 10
ARGUMENT_TYPES: dict[str, Callable[[Any], Any]] = {
    "pointer": int,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
}
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
RESULT = re.compile(r"CUDA_ERROR_\w+")
P = ParamSpec("P")
R = TypeVar("R")


# results after which every call of the process fails: the device lost what it was doing
LASTING = {
    f"CUDA_ERROR_{name}"
    for name in (
        *("ASSERT", "CONTAINED", "CONTEXT_IS_DESTROYED", "DEINITIALIZED", "ECC_UNCORRECTABLE"),
        *(
            "HARDWARE_STACK_ERROR",
            "ILLEGAL_ADDRESS",
            "ILLEGAL_INSTRUCTION",
            "INVALID_ADDRESS_SPACE",
        ),
        *("INVALID_PC", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "MISALIGNED_ADDRESS"),
        *("MPS_CLIENT_TERMINATED", "NVLINK_UNCORRECTABLE", "UNKNOWN"),
    )
}


class CudaFailure(Exception):
    """The name of a result of the driver that is no success."""


def device_call(method: Callable[P, R]) -> Callable[P, R]:
    """Make the GPU current on the calling thread, and raise CUDA errors as DeviceError, of a device
    that is lost the same one from then on."""

    @functools.wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> R:
        driver: Any = args[0]  # self
        driver.check_lost()
        try:
            driver.make_current()
            return method(*args, **options)
        except MemoryError:
            raise
        except Exception as error:  # CUDAError, RuntimeError and ValueError of cuda.core
            raise driver.failure(error) from error

    return call


def release_call(method: Callable[P, None]) -> Callable[P, None]:
    """A `device_call` that gives something back: there is nothing to give to a device that is lost,
    which the next use raises."""

    @functools.wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> None:
        driver: Any = args[0]  # self
        if driver.is_lost:
            return
        try:
            driver.make_current()
            method(*args, **options)
        except Exception as error:
            failure = driver.failure(error)
            if not driver.is_lost:
                raise failure from error

    return call


@dataclass(eq=False)
class LoadedKernel:
    kernel: Kernel
    code: ObjectCode  # must outlive the kernel


class CudaCoreDriver:
    """Driver of one GPU."""

    def __init__(self, ordinal: int) -> None:
        """`open_gpu` has checked that the driver and the GPU exist."""
        self._threads = threading.local()
        self._lost: str | None = None  # why every call fails
        self._device = Device(ordinal)
        self.make_current()
        self.name = self._device.name
        self.capability = (
            self._device.compute_capability.major,
            self._device.compute_capability.minor,
        )
        self.multiprocessors = self._device.properties.multiprocessor_count
        self.version = checked(cu.cuDriverGetVersion())
        self._foreign: dict[int, Stream] = {}  # streams known only by their handle
        self._priorities = checked(cu.cuCtxGetStreamPriorityRange())  # lowest, highest
        # orders allocations and frees
        self._allocations = self._device.create_stream(options=StreamOptions())

    def make_current(self) -> None:
        if not getattr(self._threads, "current", False):
            self._device.set_current()
            self._threads.current = True

    # ---- failures ----

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def check_lost(self) -> None:
        """Raises DeviceError once the device is lost."""
        if self._lost:
            raise DeviceError(self._lost)

    def failure(self, error: Exception) -> DeviceError:
        """What a failed call raises."""
        if self._lost:
            return DeviceError(self._lost)
        found = RESULT.search(str(error))
        result = found[0] if found else self._status()
        if result in LASTING:
            self._lost = (
                f"the GPU failed ({result}), and this process can no longer use it: run again; "
                "if it happens again, `nvidia-smi` and the kernel's log (`dmesg`) say why"
            )
            return DeviceError(self._lost)
        cause = result if found else _one_line(error)
        if cause == OUT_OF_MEMORY:
            return DeviceError(f"{self.name} has no memory left: {self._free_memory()}")
        return DeviceError(f"CUDA failed ({cause}): see `nvidia-smi`, then run again")

    def _status(self) -> str:
        """Of the device, for a failure that does not tell its cause."""
        (status,) = cu.cuStreamQuery(self._allocations.handle)
        return status.name

    def _free_memory(self) -> str:
        status, free, total = cu.cuMemGetInfo()
        if status != cu.CUresult.CUDA_SUCCESS:
            return "see who holds it with `nvidia-smi`"
        return (
            f"{free / 1e6:.0f} of {total / 1e6:.0f} MB are free: see who holds it with "
            "`nvidia-smi`, or give less --memory"
        )

    # ---- memory ----

    @device_call
    def memory(self) -> tuple[int, int]:
        free, total = checked(cu.cuMemGetInfo())
        return free, total

    @device_call
    def allocate(self, size: int) -> int:
        with _full_memory_apart():
            pointer = int(checked(cu.cuMemAllocAsync(size, self._allocations.handle)))
        self._allocations.sync()  # then any stream may use it
        return pointer

    @release_call
    def free(self, pointer: int) -> None:
        checked(cu.cuMemFreeAsync(pointer, self._allocations.handle))
        self._allocations.sync()  # then the driver's pool returns it to the system

    @device_call
    def allocate_pinned(self, size: int) -> int:
        with _full_memory_apart():
            return int(checked(cu.cuMemAllocHost(size)))

    @release_call
    def free_pinned(self, pointer: int) -> None:
        checked(cu.cuMemFreeHost(pointer))

    @device_call
    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        checked(cu.cuMemcpyAsync(target, source, size, stream.handle))

    @device_call
    def fill(self, pointer: int, byte: int, size: int, stream: Stream) -> None:
        checked(cu.cuMemsetD8Async(pointer, byte, size, stream.handle))

    # ---- streams and events ----

    @device_call
    def create_stream(self, urgent: bool) -> Stream:
        least, greatest = self._priorities
        return self._device.create_stream(
            options=StreamOptions(nonblocking=True, priority=greatest if urgent else least)
        )

    @release_call
    def close_stream(self, stream: Stream) -> None:
        self._foreign.pop(self.handle(stream), None)
        stream.close()

    def handle(self, stream: Stream) -> int:
        return int(stream.handle)

    @device_call
    def record(self, stream: Stream, *, timing: bool = False, blocking: bool = False) -> Event:
        return stream.record(options=EventOptions(timing_enabled=timing, blocking_sync=blocking))

    @device_call
    def wait(self, stream: Stream, event: Event) -> None:
        stream.wait(event)

    @device_call
    def is_done(self, event: Event) -> bool:
        return event.is_done

    @device_call
    def synchronize(self, event: Event) -> None:
        event.sync()

    @device_call
    def elapsed_ms(self, start: Event, end: Event) -> float:
        return checked(cu.cuEventElapsedTime(start.handle, end.handle))

    # ---- kernels and graphs

    @device_call
    def load(self, cubin: bytes, function: str, shared_bytes: int) -> LoadedKernel:
        code = ObjectCode.from_cubin(cubin)
        kernel = code.get_kernel(function)
        if shared_bytes > SHARED_BYTES:
            wanted = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            checked(
                cu.cuKernelSetAttribute(
                    wanted, shared_bytes, kernel.handle, cu.CUdevice(self._device.device_id)
                )
            )
        return LoadedKernel(kernel, code)

    @device_call
    def launch(
        self,
        kernel: LoadedKernel,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream_handle: int,
        args: Arguments,
    ) -> None:
        stream = self._foreign.get(stream_handle) or self._foreign.setdefault(
            stream_handle, Stream.from_handle(stream_handle)
        )
        config = LaunchConfig(grid=grid, block=(threads, 1, 1), shmem_size=shared_bytes)
        launch(
            stream, config, kernel.kernel, *(ARGUMENT_TYPES[kind](value) for kind, value in args)
        )

    @device_call
    def begin_capture(self, stream: Stream) -> None:
        # other threads may still allocate and wait
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(cu.cuStreamBeginCapture(stream.handle, mode))

    @device_call
    def end_capture(self, stream: Stream) -> Any:
        graph = checked(cu.cuStreamEndCapture(stream.handle))
        try:
            return checked(cu.cuGraphInstantiate(graph, 0))
        finally:
            checked(cu.cuGraphDestroy(graph))

    @release_call
    def abandon_capture(self, stream: Stream) -> None:
        status, graph = cu.cuStreamEndCapture(stream.handle)
        if status == cu.CUresult.CUDA_SUCCESS and graph:
            checked(cu.cuGraphDestroy(graph))

    @device_call
    def launch_graph(self, graph: Any, stream: Stream) -> None:
        checked(cu.cuGraphLaunch(graph, stream.handle))

    @release_call
    def close_graph(self, graph: Any) -> None:
        checked(cu.cuGraphExecDestroy(graph))


def checked(answer: tuple[Any, ...]) -> Any:
    """The result of a `cuda.bindings` call without its status. Raises CudaFailure if the status is
    a failure."""
    status, *values = answer
    if status != cu.CUresult.CUDA_SUCCESS:
        raise CudaFailure(status.name)
    return tuple(values) if len(values) > 1 else values[0] if values else None


@contextmanager
def _full_memory_apart() -> Iterator[None]:
    """Raise MemoryError where an allocation failed because there is too little memory."""
    try:
        yield
    except Exception as error:
        if OUT_OF_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
