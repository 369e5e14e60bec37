"""Engines of AOTInductor: packages compiled by PyTorch, with the `enqueue` of every other engine,
on a CPU or a GPU.

For benchmarks only: the runtime does not import PyTorch. The tests compare them with the other
engines on a CPU and use a stand-in for `OnGpu`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vicort.benchmarks.gpu.inductor.capture_pools import CapturePools
from vicort.runtime.devices.device import StreamEvent
from vicort.runtime.engines.bindings import BindingsCheck
from vicort.runtime.engines.graph_cache import GraphCache
from vicort.runtime.errors import DeviceError, EngineError
from vicort.runtime.manifest import GraphSpec

MAX_GRAPHS = 32  # CUDA graphs of an engine on a stream
Arrays = Mapping[str, Any]  # NumPy arrays, or `DeviceArray`s
Constants = dict[str, Tensor]


class Package(Protocol):
    """A compiled graph: tensors in, new tensors out, in the order of its signature."""

    def __call__(self, *inputs: Any) -> Any: ...


class TorchSide(Protocol):
    """Where packages run: what a lane asks of PyTorch there."""

    captures: bool  # whether runs can be CUDA graphs
    pools: CapturePools  # that outlive everything which captures into them

    def load(self, path: Path, constants: Constants) -> Package: ...

    def tensor(self, array: Any) -> Any:
        """A view of an array."""
        ...

    def copy(self, target: Any, source: Any) -> None: ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Runs inside go to this stream."""
        ...

    def new_pool(self) -> Any:
        """Memory for what graphs allocate while they are captured: it stays theirs."""
        ...

    def within(self, pool: Any) -> AbstractContextManager[Any]: ...


class InductorEngine:
    """A package, loaded once for each stream that runs it, since it serves one run at a time. The
    weights are shared."""

    def __init__(
        self, path: Path, signature: GraphSpec, constants: Constants, side: TorchSide
    ) -> None:
        """constants: by their names in the package, on the side's device. Raises EngineError if the
        package cannot be loaded with them."""
        self.signature = signature
        self._path = path
        self._constants = constants
        self._side = side
        self._check = BindingsCheck(signature)
        self._lanes: weakref.WeakKeyDictionary[Any, Lane] = weakref.WeakKeyDictionary()
        self._first: Package | None = side.load(path, constants)
        self._loading = threading.Lock()

    def enqueue(self, bindings: Any, stream: Any) -> StreamEvent:
        """Run on `stream`, reading the bound arrays in place; what comes out is copied into those
        bound to the outputs."""
        self._check(bindings)
        return stream.run(self._run, bindings, stream)

    def graph_report(self, stream: Any) -> dict[str, Any]:
        """How many CUDA graphs this stream has of the engine, and why other runs could not be
        captured."""
        lane = self._lanes.get(stream)
        return (
            {"graphs": lane.graphs, "refusals": list(lane.refusals)}
            if lane
            else {"graphs": 0, "refusals": []}
        )

    def _run(self, bindings: Arrays, stream: Any) -> None:
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = Lane(self._package(), self.signature, self._side, stream)
        lane.run(bindings)

    def _package(self) -> Package:
        """One that no other stream has."""
        with self._loading:
            package, self._first = self._first, None
        return package or self._side.load(self._path, self._constants)


class Lane:
    """A package on one stream, with CUDA graphs by shape and address where there are any, all in
    one pool: they run one after the other."""

    def __init__(
        self, package: Package, signature: GraphSpec, side: TorchSide, stream: Any
    ) -> None:
        # The stream owns its lane: a reference from here would keep both for ever.
        self._package = package
        self._side = side
        self._stream = weakref.proxy(stream)
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._graphs: GraphCache[Any] = GraphCache(MAX_GRAPHS)
        self._pool: Any = None
        self.refusals: list[str] = []  # why runs could not be captured

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def run(self, bindings: Arrays) -> None:
        if not self._side.captures:
            return self._execute(*self._tensors(bindings))
        key = tuple(
            (bindings[name].shape, bindings[name].pointer)
            for name in (*self._inputs, *self._outputs)
        )
        graph = self._graphs.get(key)
        if graph:
            return graph.launch(self._stream)
        inputs, outputs = self._tensors(bindings)
        with self._side.on(self._stream):
            self._execute(inputs, outputs)
            if self._graphs.is_due(key):
                self._capture(key, inputs, outputs)

    def _capture(self, key: object, inputs: list[Any], outputs: list[Any]) -> None:
        """Keep a further run as a graph; the plain one before it was the warm-up that capturing
        wants."""
        self._pool = self._pool or self._side.pools.lend(self, self._side.new_pool)
        try:
            with self._side.within(self._pool):
                graph = self._stream.capture(lambda: self._execute(inputs, outputs))
        except (DeviceError, RuntimeError) as error:  # of the driver, or of PyTorch
            self.refusals.append(" ".join(str(error).split()))
            self._graphs.refuse(key)
            return
        gone = self._graphs.put(key, graph)
        if gone:
            # after earlier work of the stream, which may still use them
            self._stream.notify(_close, gone)

    def _tensors(self, bindings: Arrays) -> tuple[list[Any], list[Any]]:
        return [self._side.tensor(bindings[name]) for name in self._inputs], [
            self._side.tensor(bindings[name]) for name in self._outputs
        ]

    def _execute(self, inputs: list[Any], outputs: list[Any]) -> None:
        results = self._package(*inputs)
        for target, source in zip(
            outputs, results if isinstance(results, Sequence) else (results,), strict=True
        ):
            self._side.copy(target, source)


def _close(graphs: list[Any]) -> None:
    for graph in graphs:
        graph.close()
    graphs.clear()


class OnHost:
    """A CPU: a stream's work runs in its thread, and there is nothing to capture."""

    captures = False
    pools = CapturePools()
    device = "cpu"

    def load(self, path: Path, constants: Constants) -> Package:
        """Raises EngineError if the file is no package for this machine, or wants other constants
        than these."""
        package = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
        wanted = package.get_constant_fqns()
        missing = sorted(set(wanted) - constants.keys())
        if missing:
            raise EngineError(
                f"{path} wants a constant {missing[0]!r} that the model does not have: remove "
                "the folder, and build it again"
            )
        if wanted:
            package.load_constants(
                {name: constants[name] for name in wanted},
                check_full_update=True,
                user_managed=True,
            )
        return package

    def tensor(self, array: Any) -> Any:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def copy(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def new_pool(self) -> Any:
        raise NotImplementedError

    def within(self, pool: Any) -> AbstractContextManager[Any]:
        raise NotImplementedError


class OnGpu(OnHost):
    """A GPU: PyTorch runs on the runtime's streams and memory."""

    captures = True
    device = "cuda"

    def tensor(self, array: Any) -> Any:
        half = array.dtype.name == "bfloat16"  # which the interface has no word for
        described = {
            "shape": array.shape,
            "typestr": "<i2" if half else array.dtype.str,
            "data": (array.pointer, False),
            "version": 3,
        }
        view = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=described), device="cuda")
        return view.view(torch.bfloat16) if half else view

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(torch.cuda.ExternalStream(stream.handle))

    def new_pool(self) -> Any:
        return torch.cuda.MemPool()

    def within(self, pool: Any) -> AbstractContextManager[Any]:
        return torch.cuda.use_mem_pool(pool)
