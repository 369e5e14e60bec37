"""Engines on onnxruntime: any CPU, float32."""

from __future__ import annotations

from pathlib import Path

from vicort.runtime.devices.pages import as_numpy
from vicort.runtime.engines.bindings import Bindings
from vicort.runtime.engines.cpu_engine import CpuEngine, check_signature
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec, TensorSpec
from vicort.runtime.telemetry import without_telemetry

with without_telemetry():
    import onnxruntime

TYPES = {
    "tensor(float)": "float32",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bfloat16)": "bfloat16",
}
# With a residual addition it makes a Gemm, which cannot multiply with integers: int4 weights would
# be dequantised in each run.
UNWANTED = ["MatMulAddFusion"]


class OnnxRuntimeEngine(CpuEngine):
    """A session that several streams may run at once: each run has bindings of its own."""

    def __init__(self, path: Path, signature: GraphSpec, *, threads: int) -> None:
        super().__init__(signature)
        try:
            self._session = onnxruntime.InferenceSession(
                path,
                _options(threads),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=UNWANTED,
            )
        except Exception as error:  # onnxruntime's errors have no narrower base class
            raise EngineError(
                f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}"
            ) from error
        inputs = [_spec(tensor) for tensor in self._session.get_inputs()]
        outputs = [_spec(tensor) for tensor in self._session.get_outputs()]
        check_signature(path, signature, inputs, outputs)

    def _run(self, bindings: Bindings) -> None:
        binding = self._session.io_binding()
        for spec in self.signature.inputs:
            array = as_numpy(bindings[spec.name])
            binding.bind_input(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for spec in self.signature.outputs:
            array = as_numpy(bindings[spec.name])
            binding.bind_output(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would keep a memory plan for every shape
    options.log_severity_level = 3
    # spinning takes the cores of the other stages
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(tensor: onnxruntime.NodeArg) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=TYPES.get(tensor.type, tensor.type), shape=shape)
