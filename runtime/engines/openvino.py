"""Engines on OpenVINO: x86-64 and Arm CPUs, float32 and bfloat16."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from vicort.runtime.devices.machine_cores import usable_cores
from vicort.runtime.devices.pages import as_numpy
from vicort.runtime.engines.bindings import Bindings
from vicort.runtime.engines.cpu_engine import CpuEngine, check_signature
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec, TensorSpec
from vicort.runtime.telemetry import without_telemetry

with without_telemetry():
    import openvino

TYPES = {
    openvino.Type.f32: "float32",
    openvino.Type.bf16: "bfloat16",
    openvino.Type.i32: "int32",
    openvino.Type.i8: "int8",
    openvino.Type.u8: "uint8",
}


class OpenVinoEngine(CpuEngine):
    """A compiled model with an inference request for each thread that runs it.

    Up to `streams` runs are concurrent, each with `threads` CPU threads, as far as there are cores;
    others wait. The weights are shared.
    """

    def __init__(self, path: Path, signature: GraphSpec, *, threads: int, streams: int) -> None:
        super().__init__(signature)
        self._local = threading.local()
        try:
            self._model = openvino.Core().compile_model(path, "CPU", _properties(threads, streams))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {path}: {_reason(error)}") from error
        inputs = [_spec(port, signature.inputs) for port in self._model.inputs]
        outputs = [_spec(port, signature.outputs) for port in self._model.outputs]
        check_signature(path, signature, inputs, outputs)

    def _run(self, bindings: Bindings) -> None:
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        request = self._local.request
        for name, array in bindings.items():
            request.set_tensor(name, _tensor(as_numpy(array)))
        # on an OpenVINO thread, so that runs of several streams are concurrent
        request.start_async()
        request.wait()


def _reason(error: RuntimeError) -> str:
    """The last line that says something."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason")


def _properties(threads: int, streams: int) -> dict[str, object]:
    """OpenVINO divides the cores between its streams: on two cores two streams get one thread each,
    even if more are requested. So runs are concurrent only if each can have its threads; otherwise
    they run one after the other.
    """
    streams = max(1, min(streams, usable_cores() // threads))
    return {
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # other stages and programs need the cores too
        # only what is bfloat16 in the file is computed in bfloat16
        "INFERENCE_PRECISION_HINT": "f32",
        # on processors with VNNI it would round the inputs of integer weights to int8
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _tensor(array: np.ndarray) -> openvino.Tensor:
    """OpenVINO's view of an array, without a copy."""
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(
            array.view(np.uint16), openvino.Shape(array.shape), openvino.Type.bf16
        )
    return openvino.Tensor(array, shared_memory=True)


def _spec(port: openvino.ConstOutput, wanted: tuple[TensorSpec, ...]) -> TensorSpec:
    """A port in the manifest's form. Of several names of a port, the one in `wanted` is taken."""
    name = next((spec.name for spec in wanted if spec.name in port.names), port.any_name)
    shape = tuple(size.get_length() if size.is_static else "?" for size in port.partial_shape)
    return TensorSpec(
        name=name, dtype=TYPES.get(port.element_type, str(port.element_type)), shape=shape
    )
