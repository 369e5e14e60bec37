"""Engines on onnxruntime: any CPU, float32."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from vicort.runtime.devices.device import Stream, StreamEvent
from vicort.runtime.engines.bindings import Bindings, BindingsCheck, describe_mismatch
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec, TensorSpec

TYPES = {
    "tensor(float)": "float32",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bfloat16)": "bfloat16",
}


class OnnxRuntimeEngine:
    """A session that may be run from several streams at once: its state lies in each run's own
    bindings."""

    def __init__(self, path: Path, signature: GraphSpec, *, threads: int) -> None:
        self.signature = signature
        self._check = BindingsCheck(signature)
        try:
            self._session = onnxruntime.InferenceSession(
                path, _options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own errors derive from nothing narrower
            raise EngineError(
                f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}"
            ) from error
        mismatch = describe_mismatch(
            signature,
            *(
                [_spec(t) for t in side]
                for side in (self._session.get_inputs(), self._session.get_outputs())
            ),
        )
        if mismatch:
            raise EngineError(f"{path} is not what the manifest says: {mismatch}")

    def enqueue(self, bindings: Bindings, stream: Stream) -> StreamEvent:
        """Run on `stream`, reading and writing the bound arrays in place."""
        self._check(bindings)
        return stream.run(self._run, bindings)

    def _run(self, bindings: Bindings) -> None:
        binding = self._session.io_binding()
        for spec in self.signature.inputs:
            array = bindings[spec.name]
            binding.bind_input(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for spec in self.signature.outputs:
            array = bindings[spec.name]
            binding.bind_output(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a plan for every shape it ever met
    options.log_severity_level = 3
    # spinning takes the cores of the other stages
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(tensor: onnxruntime.NodeArg) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=TYPES.get(tensor.type, tensor.type), shape=shape)
