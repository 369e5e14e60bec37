"""An engine set on the stand-in driver: the real `TensorRTEngine` over the real cuda.core, with
plans that are NumPy functions, and the real cubins, whose kernels are NumPy functions too."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as cu
from support.fake_engines import FakeEngineSet
from support.fake_tensorrt import FakeContext, FakePlan, FakeTensorRT
from support.shared import once
from support.simulated_cuda import OUTPUTS, PageFunctions
from support.simulated_tensorrt import BYTES_PER_ROW, TYPES, graph_specs
from support.stand_in_driver.in_process import RunKernel, StandInDriver

from vicort.runtime.devices.cuda import CudaDevice, DeviceArray, Gpu
from vicort.runtime.devices.cuda.cuda_core import CudaCoreDriver
from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.engines.tensorrt import TensorRTEngine
from vicort.runtime.kernels import SCHEMA_VERSION, Kernels, KernelSpec

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def stop(error: BaseException) -> None:
    """An error inside of the driver cannot be raised."""
    traceback.print_exception(error, file=sys.stderr)
    os._exit(3)


class HostMemory:
    """Device memory as NumPy arrays, since it is the host's."""

    def array_at(self, array: DeviceArray, *, write: bool = False) -> np.ndarray:
        raw = (ctypes.c_uint8 * max(array.nbytes, 1)).from_address(array.pointer)
        return np.frombuffer(raw, np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)


class StandInKernels:
    """Runs a kernel from the parameters that it was launched with."""

    def __init__(self, functions: PageFunctions) -> None:
        self._functions = functions
        self.callback = RunKernel(self._run)

    def _run(
        self,
        name: bytes,
        grid: Any,
        block: Any,
        shared_bytes: int,
        values: Any,
        sizes: Any,
        count: int,
    ) -> int:
        try:
            numbers = [
                int.from_bytes(ctypes.string_at(values[i], sizes[i]), "little")
                for i in range(count)
            ]
            assert numbers[-2:] == [0, 0], "Triton's scratch memory is not asked for"
            getattr(self._functions, name.decode())(list(grid[:3]), *numbers[:-2])
        except BaseException as error:  # noqa: BLE001
            stop(error)
        return 0


class StandInPlan(FakePlan):
    """A plan of which each run is a host function on the stream."""

    def __init__(self, module: Any, name: str, spec: Any, function: Callable[..., Any]) -> None:
        sides = [(each, "input") for each in spec.inputs]
        sides += [(each, "output") for each in spec.outputs]
        tensors = [
            (t.name, mode, TYPES[t.dtype], tuple(-1 if isinstance(s, str) else s for s in t.shape))
            for t, mode in sides
        ]
        super().__init__(module, tensors)
        self.name, self.spec, self.function = name, spec, function
        self.bytes_per_row = BYTES_PER_ROW

    def create_execution_context(self, strategy: Any) -> StandInContext:
        return StandInContext(self, next(self._numbers))


class StandInContext(FakeContext):
    def __init__(self, engine: StandInPlan, number: int) -> None:
        super().__init__(engine, number)
        self.addresses: dict[str, int] = {}
        self.functions: list[Any] = []  # of runs that a graph replays

    def _note(self, *call: Any) -> None:
        pass

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        function = HostFunction(functools.partial(self._run, dict(self.addresses), self.shapes))
        self.functions.append(function)
        address = ctypes.cast(function, ctypes.c_void_p).value
        (status,) = cu.cuLaunchHostFunc(stream, cu.CUhostFn(address), 0)
        _, captures = cu.cuStreamIsCapturing(stream)
        if captures == cu.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE:
            self.functions.pop()
        return status == cu.CUresult.CUDA_SUCCESS

    def _run(self, addresses: dict[str, int], shapes: dict[str, Any], _: Any) -> None:
        try:
            memory, spec = HostMemory(), self.engine.spec
            inputs = {
                each.name: memory.array_at(
                    DeviceArray(None, addresses[each.name], shapes[each.name], each.dtype)
                )
                for each in spec.inputs
            }
            results = self.engine.function(**inputs, **dict.fromkeys(OUTPUTS[self.engine.name]))
            for each in spec.outputs:
                value = results[each.name]
                out = DeviceArray(None, addresses[each.name], value.shape, each.dtype)
                memory.array_at(out)[...] = value
        except BaseException as error:  # noqa: BLE001
            stop(error)


@functools.cache
def stand_in_driver() -> StandInDriver:
    """The one of this process."""
    return StandInDriver()


@functools.cache
def cubins() -> Kernels:
    """Real ones for sm_90. Their heads are larger than the toy's: Triton compiles none so small."""
    from vicort.export.kernels.compile import compile_kernels

    spec = KernelSpec(
        kv_heads=2,
        groups=2,
        head_dim=32,
        page_tokens=4,
        dtype="float32",
        sections=(4, 6, 6),
        frequencies=(1.0,) * 16,
    )
    path = once(
        f"stand-in-kernels-{SCHEMA_VERSION}.zip",
        lambda path: path.write_bytes(compile_kernels(spec, (90,))),
    )
    return Kernels.read(path)


class StandInEngineSet(FakeEngineSet):
    """`FakeEngineSet` on the stand-in: the same functions, so the same answers to the last bit."""

    def __init__(self, seed: int = 0, gpu: Gpu | None = None, **model_changes: Any) -> None:
        """gpu: None = found anew."""
        super().__init__(seed, **model_changes)
        self.gpu = gpu or Gpu(CudaCoreDriver(0))
        self.kernels = LoadedKernels(
            cubins(),
            capability=self.gpu.capability,
            multiprocessors=self.gpu.multiprocessors,
            launcher=self.gpu.launcher,
        )
        functions = PageFunctions(HostMemory(), self.model, self.dtype, "float")
        self._page_kernels = StandInKernels(functions)
        stand_in_driver().run_kernels(self._page_kernels.callback)
        with tempfile.TemporaryDirectory() as folder:
            for name, spec in graph_specs(self.model).items():
                path = Path(folder) / spec.file
                path.write_bytes(b"plan")
                module = FakeTensorRT(())
                module.engine = StandInPlan(module, name, spec, getattr(self, name).function)
                setattr(self, name, TensorRTEngine(path, spec, self.manifest, module, self.kernels))

    def new_device(self, overlap: bool = True) -> CudaDevice:
        return CudaDevice(self.gpu, self.kernels, threads=overlap, resize_on="cpu")
