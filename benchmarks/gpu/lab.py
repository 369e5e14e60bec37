"""What the steps of gpu.check share: the GPU, its kernels, copies of arrays, and time on the
device's clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.spread import Spread, spread
from vicort.runtime.devices.cuda import DeviceArray, Gpu, open_gpu
from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.errors import DeviceError, EngineError, VicortError
from vicort.runtime.kernels import Kernels, KernelSpec
from vicort.runtime.kernels import fitting_architecture as best_architecture

POISON = 0xFF  # of every byte: NaN in all float types, -1 in int32
REPEATS = 20  # measurements of each time
MIN_MS = 1.0  # of work in one measurement
MAX_LAUNCHES = 200  # in one measurement
DECISION = "gpu-backend.json"  # in the folder of what is built for the checks


class Skip(VicortError):
    """A step cannot run on this machine; the text says why."""


class StepFailed(VicortError):
    """A step ran, and its result is wrong. `found`: its numbers."""

    def __init__(self, line: str, found: dict[str, Any]) -> None:
        super().__init__(line)
        self.found = found


class Lab:
    """One process's view of the GPU. Raises Skip where a part is missing."""

    def __init__(self, folder: Path, gpu: Gpu | None = None) -> None:
        """folder: for everything that the checks build. gpu: None = the first of this machine."""
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

    # ---- arrays

    def put(self, array: np.ndarray) -> DeviceArray:
        """A copy on the device."""
        target = self.poisoned(array.shape, array.dtype)
        pinned = self.gpu.pinned.empty(array.shape, array.dtype)
        np.copyto(pinned, array)
        if array.nbytes:
            self.gpu.driver.copy(target.pointer, pinned.ctypes.data, array.nbytes, self.raw)
        self.finish()
        return target

    def get(self, array: DeviceArray) -> np.ndarray:
        """A copy on the host, after all work of the stream."""
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

    # ---- time

    def times_ms(self, launches: list[Callable[[], None]]) -> Spread:
        """Milliseconds of one launch on the device's clock. Many launches, in turn, are replayed as
        one CUDA graph: this excludes the host's time and reuse of cached data."""
        driver = self.gpu.driver
        for launch in launches:
            launch()
        self.finish()
        once = max(self._elapsed_ms(launches[0]), 1e-3)
        rounds = max(1, min(MAX_LAUNCHES, round(MIN_MS / once)) // len(launches))
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
            return spread(
                [self._elapsed_ms(replay) / (rounds * len(launches)) for _ in range(REPEATS)], 6
            )
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

    # ---- which engines are measured

    @property
    def backend(self) -> str:
        """The backend whose engines are measured: "tensorrt", or "inductor" where TensorRT does not
        run on this GPU or is not installed. Raises Skip before step `plan` has decided it."""
        if self.decision is None:
            if not any(find_spec(name) for name in ("tensorrt_rtx", "tensorrt")):
                return "inductor"
            raise Skip(
                "it is not known yet whether TensorRT runs on this GPU: run step plan first, with "
                "the same --cache"
            )
        return self.decision["backend"]

    @property
    def decision(self) -> dict[str, Any] | None:
        """The decision of step `plan` for this GPU: `backend`, and `reason` if it is not
        TensorRT."""
        path = self.folder / DECISION
        kept = json.loads(path.read_text()) if path.is_file() else {}
        return kept if kept.get("gpu") == self.gpu.name else None

    @contextmanager
    def trying_tensorrt(self) -> Iterator[None]:
        """Decides by the work inside whether TensorRT runs here: not if it raises, or if this
        process dies or is killed."""
        self._decide("inductor", "the process that tried TensorRT came to no end")
        try:
            yield
        except Exception as error:
            self._decide("inductor", " ".join(str(error).split()) or type(error).__name__)
            raise
        self._decide("tensorrt", None)

    def _decide(self, backend: str, reason: str | None) -> None:
        content = {"gpu": self.gpu.name, "backend": backend, "reason": reason}
        (self.folder / DECISION).write_text(json.dumps(content, indent=1) + "\n")

    # ---- what is built

    def kernels(
        self, name: str, spec: KernelSpec, rotate_first: bool | None = None
    ) -> LoadedKernels:
        """Kernels of a spec, compiled for this GPU's architecture if they are missing;
        rotate_first: of `LoadedKernels`."""
        need("triton", "the kernels are compiled with it")
        from vicort.export.kernels.compile import compile_kernels

        architecture = fitting_architecture(self.gpu)
        path = self.folder / f"kernels-{name}-sm{architecture}.zip"
        if not path.is_file() or Kernels.read(path).spec != spec:
            path.write_bytes(compile_kernels(spec, (architecture,)))
        gpu = self.gpu
        return LoadedKernels(
            Kernels.read(path),
            capability=gpu.capability,
            multiprocessors=gpu.multiprocessors,
            launcher=gpu.launcher,
            rotate_first=rotate_first,
        )

    def need_tensorrt(self) -> None:
        from vicort.runtime.engines.tensorrt import load_tensorrt

        try:
            load_tensorrt()
        except EngineError as error:
            raise Skip(str(error)) from error


def fitting_architecture(gpu: Gpu) -> int:
    """The architecture, among those that the kernels are compiled for, that runs on this GPU: 90
    for sm_90. Raises Skip if there is none."""
    from vicort.export.kernels.architectures import ARCHITECTURES

    fitting = best_architecture(ARCHITECTURES, gpu.capability)
    if fitting is None:
        major, minor = gpu.capability
        raise Skip(
            f"the kernels are compiled for {', '.join(f'sm_{each}' for each in ARCHITECTURES)}, "
            f"this GPU is sm_{major}{minor}"
        )
    return fitting


def need(module: str, why: str) -> None:
    """Raises Skip if a module is not installed."""
    if find_spec(module) is None:
        raise Skip(f"{module} is not installed, and {why}")
