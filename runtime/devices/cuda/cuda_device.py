"""The device of TensorRT engines: streams, arrays and pages of one GPU, for one session."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.devices.cuda.allocator import current_stream
from vicort.runtime.devices.cuda.arrays import DeviceArray, as_device
from vicort.runtime.devices.cuda.cuda_pool import CudaPool, PinnedPool
from vicort.runtime.devices.cuda.cuda_preprocess import UploadingPreprocessor
from vicort.runtime.devices.cuda.gpu import Gpu
from vicort.runtime.devices.cuda.streams import CallbackThread, CudaStream
from vicort.runtime.devices.device import ON_CPU_ONLY, Array, Preprocessing
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.devices.urgency import Urgency
from vicort.runtime.errors import DeviceError, VicortError
from vicort.runtime.manifest import ModelSpec

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels


class CudaDevice:
    """Streams with priorities, and memory of a GPU. Methods take only streams of this device.

    threads=False: all streams share one CUDA stream, and their work runs in its caller.
    """

    stream_type = CudaStream

    def __init__(
        self,
        gpu: Gpu,
        kernels: LoadedKernels,
        *,
        threads: bool = True,
        resize_on: Literal["cpu", "gpu"] = "gpu",
        memory: MachineMemory | None = None,
        run_bytes: int = 0,
    ) -> None:
        """kernels: write tokens into pages. resize_on: where frames are resized. memory: what
        `memory` returns, None = the GPU's. run_bytes: what runs of engines will take of it."""
        self.gpu = gpu
        self._memory = memory
        self._run_bytes = run_bytes
        self.kernels = kernels
        self.threads = threads
        self._resize_on = resize_on
        self.urgency: Urgency = _NoUrgency()
        self.callbacks = CallbackThread(gpu.driver)
        self._streams: list[CudaStream] = []
        self._shared: Any = None  # without threads: the one CUDA stream
        gpu.memory.trim()  # arrays of an earlier session had other sizes

    def stream(self, name: str, urgent: bool = False) -> CudaStream:
        if self.threads:
            raw = self.gpu.driver.create_stream(urgent)
        else:
            raw = self._shared = self._shared or self.gpu.driver.create_stream(urgent=False)
        stream = self.stream_type(self, name, raw, self.threads)
        self.gpu.memory.register(stream)
        self._streams.append(stream)
        return stream

    def memory(self) -> MachineMemory:
        return self._memory or self.gpu.machine_memory()

    def check(self) -> None:
        self.gpu.driver.check_lost()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        return self.gpu.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        return self.filled(shape, dtype, 0)

    def filled(self, shape: tuple[int, ...], dtype: DTypeLike, byte: int) -> DeviceArray:
        """An array of equal bytes, filled in the order of the calling stream, or, outside of
        streams, before this returns."""
        array, driver = self.gpu.empty(shape, dtype), self.gpu.driver
        stream = current_stream()
        raw = stream.raw if stream else driver.create_stream(urgent=False)
        driver.fill(array.pointer, byte, array.nbytes, raw)
        if not stream:
            driver.synchronize(driver.record(raw))
            driver.close_stream(raw)
        return array

    def pool(
        self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False
    ) -> CudaPool:
        """Raises DeviceError if the pages do not fit, with the largest budget that does, or if
        `by_head` is set."""
        if by_head:
            raise DeviceError(ON_CPU_ONLY)
        wanted, available = pages * page_bytes(model, dtype), self.gpu.memory.available()
        left = max(0, available - self._run_bytes)
        if wanted > left:
            runs = f", runs {self._run_bytes / 1e6:.0f}" if self._run_bytes else ""
            raise DeviceError(
                f"{self.gpu.name} has {available / 1e6:.0f} of "
                f"{self.gpu.driver.memory()[1] / 1e6:.0f} MB free, the pages of the system take "
                f"{wanted / 1e6:.0f}{runs}: give --memory less than {left / 1e6:.0f}MB, or free "
                "memory (see `nvidia-smi`)"
            )
        return CudaPool(self, model, pages, dtype)

    def host_pool(
        self, model: ModelSpec, pages: int, dtype: DTypeLike, by_head: bool = False
    ) -> PinnedPool:
        return PinnedPool(self, model, pages, dtype)

    def preprocessor(self, size: tuple[int, int] | None, threads: int) -> Preprocessing:
        height, width = size or (None, None)
        if self._resize_on == "gpu":
            try:
                return Preprocessor(height, width, device="gpu", threads=threads)
            except VicortError as error:
                warnings.warn(f"{error}; frames are resized on the CPU instead", stacklevel=2)
        return UploadingPreprocessor(self, Preprocessor(height, width, threads=threads))

    def upload(self, target: Array, source: np.ndarray, stream: Any) -> None:
        stream.upload(target, source)

    def copy(self, target: Array, source: Array, stream: Any) -> None:
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(f"{source} cannot be copied into {target}")
        if target.nbytes:
            self.gpu.driver.copy(
                as_device(target).pointer, as_device(source).pointer, target.nbytes, stream.raw
            )

    def read(self, stream: Any, *arrays: Array) -> tuple[np.ndarray, ...]:
        readbacks = tuple(self._read_back(as_device(array), stream) for array in arrays)
        stream.finish()
        return readbacks

    def _read_back(self, array: DeviceArray, stream: CudaStream) -> np.ndarray:
        """Start a copy to pinned memory; the same part of a block always uses the same array."""
        block = array.memory.block
        key = (array.pointer - block.pointer, array.nbytes)
        if key not in block.readbacks:
            block.readbacks[key] = self.gpu.pinned.empty((array.nbytes,), np.uint8)
        readback = block.readbacks[key]
        if array.nbytes:
            self.gpu.driver.copy(readback.ctypes.data, array.pointer, array.nbytes, stream.raw)
        view = readback.view(array.dtype).reshape(array.shape)
        view.flags.writeable = False
        return view

    def close(self) -> None:
        """Wait for work in progress, and drop work that has not started. Raises the device's
        error."""
        failures = [error for error in map(_close, self._streams) if error]
        self.callbacks.close()
        for stream in self._streams:
            self.gpu.memory.unregister(stream)
        # work that closes its own device still puts its rest on the stream
        raws = {id(stream.raw): stream.raw for stream in self._streams if not stream.here}
        self._streams.clear()
        self._shared = None
        if failures:
            raise failures[0]
        for raw in raws.values():
            self.gpu.driver.close_stream(raw)


def _close(stream: CudaStream) -> DeviceError | None:
    try:
        stream.close()
    except DeviceError as error:
        return error
    return None


class _NoUrgency(Urgency):
    """The GPU schedules streams by priority itself."""

    holds_back = False

    def wait_for_urgent_work(self, unless: Callable[[], bool] = lambda: False) -> None:
        pass
