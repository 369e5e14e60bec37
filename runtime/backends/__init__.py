"""The engines that can run a graph on this machine, by name."""

from __future__ import annotations

from pathlib import Path

from vicort.runtime.engine import Engine
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import Backend, GraphSpec

LOADABLE = ("onnxruntime", "openvino")


def load_engine(backend: Backend, path: Path, graph: GraphSpec, *, threads: int, streams: int) -> Engine:
    """The engine in a file. threads: CPU threads a run; streams: runs at once, at most.

    Raises EngineError if the file cannot be loaded, or does not have the tensors that `graph` says.
    """
    if backend == "onnxruntime":
        from vicort.runtime.backends.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(path, graph, threads=threads)
    if backend == "openvino":
        from vicort.runtime.backends.openvino import OpenVinoEngine

        return OpenVinoEngine(path, graph, threads=threads, streams=streams)
    allowed = " and ".join(LOADABLE)
    raise EngineError(
        f"{path.parent} is for {backend!r}, this version runs {allowed}: build one with `vicort-build MODEL --backend openvino`"
    )
