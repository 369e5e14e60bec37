"""The engines that can run a graph on this machine, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from vicort.runtime.devices.device import Device
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.engines.engine import Engine
from vicort.runtime.manifest import Backend, GraphSpec


class OpenBackend(Protocol):
    """A backend made ready for one engine set."""

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> Engine:
        """The engine in a file. streams: runs at once, at most.

        Raises EngineError if the file cannot be loaded, or does not have the tensors that `graph`
        says.
        """
        ...

    def new_device(self, overlap: bool) -> Device:
        """The device that these engines run on, with streams of its own. overlap=False: each
        stream's work runs in its caller."""
        ...


def open_backend(backend: Backend, folder: Path, *, threads: int) -> OpenBackend:
    """threads: CPU threads a run.

    Raises DeviceError if a GPU is needed and there is none, EngineError if the module that runs the
    engines is missing.
    """
    if backend == "tensorrt":
        from vicort.runtime.engines.tensorrt import TensorRTBackend

        return TensorRTBackend(folder)
    return CpuBackend(backend, threads)


class CpuBackend:
    def __init__(self, backend: Backend, threads: int) -> None:
        self._backend, self._threads = backend, threads

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> Engine:
        if self._backend == "onnxruntime":
            from vicort.runtime.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(path, graph, threads=self._threads)
        from vicort.runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(path, graph, threads=self._threads, streams=streams)

    def new_device(self, overlap: bool) -> HostDevice:
        return HostDevice(threads=overlap)
