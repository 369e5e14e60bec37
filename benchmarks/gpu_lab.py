"""What the steps of `gpu_check` share: the GPU, engine sets and kernels made for it, arrays in and out, and time on the device's clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.spread import Spread, spread
from vicort.runtime.cuda import DeviceArray, Gpu, open_gpu
from vicort.runtime.engine import EngineSet
from vicort.runtime.errors import DeviceError, EngineError, VicortError
from vicort.runtime.kernels import Kernels, KernelSpec, LoadedKernels

POISON = 0xFF  # of every byte: NaN in all float types, -1 in int32
REPEATS = 20  # measurements of each time
AT_LEAST_MS = 1.0  # of work in one measurement
MOST_LAUNCHES = 200  # in one measurement


class Skip(Exception):
    """A step cannot be tried here, and why."""


class NotRight(VicortError):
    """A step ran, and what it found is wrong. `found`: its numbers all the same."""

    def __init__(self, line: str, found: dict[str, Any]) -> None:
        super().__init__(line)
        self.found = found


class Lab:
    """One process's view of the GPU. Raises Skip where a part is missing."""

    def __init__(self, folder: Path, gpu: Gpu | None = None) -> None:
        """folder: where what is built for the checks is kept. gpu: None = the first of this machine."""
        self.folder = folder
        if gpu is not None:
            self.gpu = gpu

    @cached_property
    def gpu(self) -> Gpu:
        try:
            return open_gpu()
        except DeviceError as error:
            raise Skip(str(error)) from error

    @cached_property
    def raw(self) -> Any:
        """The driver's stream that checks run on."""
        return self.gpu.driver.create_stream(False)

    @property
    def handle(self) -> int:
        return self.gpu.driver.handle(self.raw)

    # ---- arrays -----------------------------------------------------------------------------------------------------------

    def put(self, array: np.ndarray) -> DeviceArray:
        """A copy on the device."""
        target, pinned = self.poisoned(array.shape, array.dtype), self.gpu.pinned.empty(array.shape, array.dtype)
        np.copyto(pinned, array)
        if array.nbytes:
            self.gpu.driver.copy(target.pointer, pinned.ctypes.data, array.nbytes, self.raw)
        self.finish()
        return target

    def get(self, array: DeviceArray) -> np.ndarray:
        """A copy on the host, once all work of the stream is done."""
        pinned = self.gpu.pinned.empty(array.shape, array.dtype)
        if array.nbytes:
            self.gpu.driver.copy(pinned.ctypes.data, array.pointer, array.nbytes, self.raw)
        self.finish()
        return np.array(pinned)

    def poisoned(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array of NaN, or of -1."""
        array = self.gpu.empty(shape, dtype, "a check")
        if array.nbytes:
            self.gpu.driver.fill(array.pointer, POISON, array.nbytes, self.raw)
        return array

    def finish(self) -> None:
        self.gpu.driver.synchronize(self.gpu.driver.record(self.raw))

    # ---- time -------------------------------------------------------------------------------------------------------------

    def times_ms(self, launches: list[Callable[[], None]]) -> Spread:
        """Milliseconds of one launch on the device's clock: many, taken in turn, are replayed as one CUDA graph, so that the host's part is
        left out, and data that one leaves in the caches is not the next one's."""
        driver = self.gpu.driver
        for launch in launches:
            launch()
        self.finish()
        once = max(self._elapsed_ms(launches[0]), 1e-3)
        rounds = max(1, min(MOST_LAUNCHES, round(AT_LEAST_MS / once)) // len(launches))
        driver.begin_capture(self.raw)
        try:
            for _ in range(rounds):
                for launch in launches:
                    launch()
        except BaseException:
            driver.abandon_capture(self.raw)
            raise
        graph = driver.end_capture(self.raw)
        try:
            replay = lambda: driver.launch_graph(graph, self.raw)  # noqa: E731
            for _ in range(3):
                replay()
            return spread([self._elapsed_ms(replay) / (rounds * len(launches)) for _ in range(REPEATS)], 6)
        finally:
            self.finish()
            driver.close_graph(graph)

    def _elapsed_ms(self, work: Callable[[], None]) -> float:
        driver = self.gpu.driver
        start = driver.record(self.raw, timing=True)
        work()
        end = driver.record(self.raw, timing=True)
        driver.synchronize(end)
        return driver.elapsed_ms(start, end)

    # ---- what is built ----------------------------------------------------------------------------------------------------

    def kernels(self, name: str, spec: KernelSpec) -> LoadedKernels:
        """Kernels of a spec, compiled for this GPU's architecture if they are not there yet."""
        need("triton", "the kernels are compiled with it")
        from vicort.export.kernels.compile import ARCHITECTURES, compile_kernels

        major, minor = self.gpu.capability
        fitting = [each for each in ARCHITECTURES if each // 10 == major and each % 10 <= minor]
        if not fitting:
            raise Skip(f"the kernels are compiled for {', '.join(f'sm_{each}' for each in ARCHITECTURES)}, this GPU is sm_{major}{minor}")
        path = self.folder / f"kernels-{name}-sm{fitting[-1]}.zip"
        if not path.is_file() or Kernels.read(path).spec != spec:
            path.write_bytes(compile_kernels(spec, (fitting[-1],)))
        gpu = self.gpu
        return LoadedKernels(Kernels.read(path), capability=gpu.capability, multiprocessors=gpu.multiprocessors, launcher=gpu.launcher)

    def engine_dir(self, backend: str, precision: str) -> Path:
        """The tiny model's engine set, built if it is not there yet."""
        self.gpu  # noqa: B018 (skips without one)
        need("torch", "engine sets are built with it")
        if backend == "tensorrt":
            self.need_tensorrt()
        from vicort.benchmarks.engine_sets import tiny_model  # late: it takes torch

        return tiny_model().engines(self.folder, backend, precision)

    def engines(self, backend: str, precision: str) -> EngineSet:
        return EngineSet.open(self.engine_dir(backend, precision))

    def need_tensorrt(self) -> None:
        from vicort.runtime.backends.tensorrt import load_tensorrt

        try:
            load_tensorrt()
        except EngineError as error:
            raise Skip(str(error)) from error


def need(module: str, why: str) -> None:
    """Raises Skip if a module is not installed."""
    if find_spec(module) is None:
        raise Skip(f"{module} is not installed, and {why}")


def version(name: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
