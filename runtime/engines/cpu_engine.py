"""What the engines of the CPU backends share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from vicort.runtime.devices.device import Stream, StreamEvent
from vicort.runtime.devices.forked_children import leave_to_parent
from vicort.runtime.engines.bindings import Bindings, BindingsCheck, describe_mismatch
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec, TensorSpec


class CpuEngine(ABC):
    """Checks bindings, and runs in the order of a stream."""

    def __init__(self, signature: GraphSpec) -> None:
        self.signature = signature
        leave_to_parent(self)
        self._check = BindingsCheck(signature)

    def enqueue(self, bindings: Bindings, stream: Stream) -> StreamEvent:
        """Run on `stream`, reading and writing the bound arrays in place."""
        self._check(bindings)
        return stream.run(self._run, bindings)

    @abstractmethod
    def _run(self, bindings: Bindings) -> None:
        """Run once, on the calling thread."""


def check_signature(
    path: Path, graph: GraphSpec, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Raises EngineError if a loaded engine has other tensors than the manifest says."""
    mismatch = describe_mismatch(graph, inputs, outputs)
    if mismatch:
        raise EngineError(f"{path} is not what the manifest says: {mismatch}")
