"""Engines on OpenVINO: x86-64 and Arm CPUs, float32 and bfloat16."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import openvino

from vicort.runtime.devices.device import Stream, StreamEvent
from vicort.runtime.engines.bindings import Bindings, BindingsCheck, describe_mismatch
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec, TensorSpec

TYPES = {
    openvino.Type.f32: "float32",
    openvino.Type.bf16: "bfloat16",
    openvino.Type.i32: "int32",
    openvino.Type.u8: "uint8",
}


class OpenVinoEngine:
    """A compiled model with an inference request for each thread that runs it.

    Up to `streams` runs go on at once, each with `threads` CPU threads, as far as there are cores;
    a further one waits. The weights are shared.
    """

    def __init__(self, path: Path, signature: GraphSpec, *, threads: int, streams: int) -> None:
        self.signature = signature
        self._check = BindingsCheck(signature)
        self._local = threading.local()
        try:
            self._model = openvino.Core().compile_model(path, "CPU", _properties(threads, streams))
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot load {path}: {str(error).splitlines()[-1]}"
            ) from error
        sides = ((self._model.inputs, signature.inputs), (self._model.outputs, signature.outputs))
        mismatch = describe_mismatch(
            signature, *([_spec(port, wanted) for port in ports] for ports, wanted in sides)
        )
        if mismatch:
            raise EngineError(f"{path} is not what the manifest says: {mismatch}")

    def enqueue(self, bindings: Bindings, stream: Stream) -> StreamEvent:
        """Run on `stream`, reading and writing the bound arrays in place."""
        self._check(bindings)
        return stream.run(self._run, bindings)

    def _run(self, bindings: Bindings) -> None:
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        request = self._local.request
        for name, array in bindings.items():
            request.set_tensor(name, _tensor(array))
        # on a thread of the engine's own, so that runs of several streams go on side by side
        request.start_async()
        request.wait()


def _properties(threads: int, streams: int) -> dict[str, object]:
    """OpenVINO shares the cores out between streams: on two cores, two streams have one thread
    each, however many are asked for.

    So runs go side by side only where each can have its threads; else they take turns.
    """
    streams = max(1, min(streams, len(os.sched_getaffinity(0)) // threads))
    return {
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # other stages and other programs want the cores too
        # as the file says: what is bfloat16 there stays so, nothing else becomes it
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _tensor(array: np.ndarray) -> openvino.Tensor:
    """OpenVINO's view of an array, without a copy."""
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(
            array.view(np.uint16), openvino.Shape(array.shape), openvino.Type.bf16
        )
    return openvino.Tensor(array, shared_memory=True)


def _spec(port: openvino.ConstOutput, wanted: tuple[TensorSpec, ...]) -> TensorSpec:
    """A port as the manifest would write it. A port may have several names: the one that is
    `wanted`, if it is among them."""
    name = next((spec.name for spec in wanted if spec.name in port.names), port.any_name)
    shape = tuple(size.get_length() if size.is_static else "?" for size in port.partial_shape)
    return TensorSpec(
        name=name, dtype=TYPES.get(port.element_type, str(port.element_type)), shape=shape
    )
