"""Backends: what loads engines and makes their device, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, assert_never

from vicort.runtime.devices.device import Device
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.engines.engine import Engine
from vicort.runtime.manifest import Backend, GraphSpec


class OpenBackend(Protocol):
    """A backend opened for one engine set."""

    loading_threads: int  # engines that may be loaded at once

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> Engine:
        """Load the engine of a file. streams: maximum concurrent runs.

        Raises EngineError if the file cannot be loaded, or has other tensors than `graph`.
        """
        ...

    def new_device(self, overlap: bool) -> Device:
        """A new device for these engines. overlap=False: the work of each stream runs in its
        caller."""
        ...

    def memory(self) -> MachineMemory:
        """How much there is in total, of the device and of its host."""
        ...


def open_backend(backend: Backend, folder: Path, *, threads: int) -> OpenBackend:
    """threads: CPU threads per run.

    Raises DeviceError if a GPU is required and there is none, EngineError if the backend's module
    is missing.
    """
    match backend:
        case "tensorrt":
            from vicort.runtime.engines.tensorrt import TensorRTBackend

            return TensorRTBackend(folder)
        case "onnxruntime" | "openvino":
            return CpuBackend(backend, threads)
    assert_never(backend)  # mypy finds a name in Backend that has no case here


class CpuBackend:
    def __init__(self, backend: Literal["onnxruntime", "openvino"], threads: int) -> None:
        self.loading_threads = threads
        self._backend = backend
        self._threads = threads

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> Engine:
        if self._backend == "onnxruntime":
            from vicort.runtime.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(path, graph, threads=self._threads)
        from vicort.runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(path, graph, threads=self._threads, streams=streams)

    def new_device(self, overlap: bool) -> HostDevice:
        return HostDevice(threads=overlap)

    def memory(self) -> MachineMemory:
        return MachineMemory(host_memory())
