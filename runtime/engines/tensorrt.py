"""Engines on TensorRT of either flavour: `tensorrt`, or `tensorrt_rtx` (TensorRT for RTX). No other
file of the runtime calls TensorRT.

Loading and the build side of the plugin are tested with the real tensorrt_rtx; what requires a GPU,
with a fake module.
"""

from __future__ import annotations

import functools
import importlib
import logging
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

import numpy as np

from vicort.runtime.devices.cuda.allocator import DEVICE_ALIGNMENT
from vicort.runtime.devices.cuda.arrays import as_device
from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.engines.bindings import Bindings, BindingsCheck, describe_mismatch
from vicort.runtime.engines.gpu_fit import check_fits, gpu_memory
from vicort.runtime.engines.graph_cache import GraphCache
from vicort.runtime.errors import DeviceError, EngineError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.kernels import Kernels
from vicort.runtime.manifest import FILE_NAME, Flavour, GraphSpec, Manifest, TensorSpec

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda import CudaGraph, CudaStream, DeviceArray
    from vicort.runtime.devices.device import Device, StreamEvent
    from vicort.runtime.devices.machine_memory import MachineMemory

    Arrays = Mapping[str, DeviceArray]

logger = logging.getLogger(__name__)

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)  # the first that can be imported is used
PIP_NAMES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
# TensorRT's name -> NumPy's name
TYPES = {
    "FLOAT": "float32",
    "BF16": "bfloat16",
    "HALF": "float16",
    "INT32": "int32",
    "UINT8": "uint8",
    "INT8": "int8",
}
PLUGIN = "BoundedAttention"
NAMESPACE = "vicort"
PLUGIN_VERSION = "1"
FIELDS = {
    "layer": np.int32,
    "scale": np.float32,
    "sections": np.int32,
    "frequencies": np.float32,
    "interleaved": np.int32,
}
INPUTS = ("q", "k", "v", "pos", "segment", "until", "pool", "where", "table")
SCALES = "scales"  # the last input where the pool is int8
INTEGERS = tuple(map(INPUTS.index, ("pos", "segment", "until", "where", "table")))  # int32
POOL, TABLE = INPUTS.index("pool"), INPUTS.index("table")
MAX_GRAPHS = 32  # CUDA graphs per engine and stream; each has an execution context
GROWTH = 1.5  # factor for the memory of a stream's contexts when a run requires more


class TensorRT:
    """A TensorRT module with its logger and plugin creator, of which a process has one each."""

    def __init__(self, module: Any, flavour: Flavour) -> None:
        self.module = module
        self.flavour = flavour
        self.version: str = module.__version__
        self.logger = _derive(Logger, module.ILogger)()
        self.creator: Any = None
        self._lock = threading.Lock()

    @contextmanager
    def plugins(self, kernels: Any) -> Iterator[PluginHost]:
        """Plugins that a parser or a plan creates in the body use these kernels: `Kernels` to
        build, `LoadedKernels` to run."""
        with self._lock:
            if self.creator is None:
                self.creator = _derive(PluginCreator, self.module.IPluginCreatorV3One)(self.module)
                if not self.module.get_plugin_registry().register_creator(self.creator, NAMESPACE):
                    raise EngineError(
                        f"{self.flavour} {self.version} rejects the plugin "
                        f"{NAMESPACE}::{PLUGIN}: build with --no-plugin"
                    )
            self.creator.host = host = PluginHost(kernels)
            try:
                yield host
            finally:
                self.creator.host = None


def load_tensorrt(flavour: Flavour | None = None) -> TensorRT:
    """TensorRT of a flavour, or of the first that is installed. Raises EngineError with the pip
    command if there is none."""
    failures = []
    for name in [flavour] if flavour else FLAVOURS:
        try:
            return _load(name)
        except (
            ImportError,
            OSError,
            RuntimeError,
            AttributeError,
        ) as error:  # a package may be installed without its libraries
            failures.append(f"{name}: {_first_line(error)}")
    wanted = PIP_NAMES[flavour or "tensorrt_rtx"]
    raise EngineError(
        f"TensorRT cannot be loaded ({'; '.join(failures)}): run `pip install {wanted}`"
    )


@functools.cache  # a process has one logger and plugin creator per flavour
def _load(flavour: Flavour) -> TensorRT:
    return TensorRT(importlib.import_module(flavour), flavour)


class Logger:
    """Collects TensorRT's errors: its calls return only failure, the reason goes to the log."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.listener: Callable[[str], None] | None = None  # called with every message
        self.echo: TextIO | None = None  # also receives errors, immediately

    def log(self, severity: Any, message: str) -> None:
        if severity.name in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
            if self.echo:
                print(message, file=self.echo, flush=True)
        if self.listener:
            self.listener(message)

    def reason(self) -> str:
        """The first error since the last call, as one line."""
        errors, self.errors = self.errors, []
        return " ".join(errors[0].split()) if errors else "it gave no reason"


class PluginHost:
    """The kernels of all plugins of one engine, and the first exception in any of them.

    TensorRT drops an exception of a plugin, or turns it into an error code, so it is kept here for
    the caller of TensorRT.
    """

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self._failure: Exception | None = None

    def keep(self, error: Exception) -> None:
        self._failure = self._failure or error

    def take_failure(self) -> Exception | None:
        """The first exception since the last call."""
        failure, self._failure = self._failure, None
        return failure


def _kept(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: Any, *args: Any) -> Any:
        try:
            return method(self, *args)
        except Exception as error:
            if self.host:
                self.host.keep(error)
            raise

    return guarded


class BoundedAttention:
    """`vicort::BoundedAttention` as a TensorRT plugin, for build and run time. `_derive` adds the
    base classes.

    Inputs q [C,Hq,D], k and v [C,Hkv,D], pos [C,3], segment and until [C], pool [P,L,Hkv,2,T,D],
    where [P,L|1,Hkv|1,T,3], table [S,L|1,Hkv|1,N] and, of an int8 pool, scales [P,L,Hkv,2,T];
    output [C,Hq,D].
    """

    def __init__(self, module: Any, host: PluginHost, fields: dict[str, np.ndarray]) -> None:
        self.module = module
        self.host = host
        self.fields = fields
        self.plugin_name = PLUGIN
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = NAMESPACE
        self.num_outputs = 1

    def get_capability_interface(self, kind: Any) -> BoundedAttention:
        return self

    def clone(self) -> BoundedAttention:
        return type(self)(self.module, self.host, self.fields)

    def attach_to_context(self, context: Any) -> BoundedAttention:
        return self.clone()

    @_kept
    def get_fields_to_serialize(self) -> Any:
        return _field_collection(self.module, self.fields)

    @_kept
    def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
        return [types[0]]

    @_kept
    def get_output_shapes(
        self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expressions: Any
    ) -> list[Any]:
        return [inputs[0]]

    @_kept
    def supports_format_combination(
        self, position: int, tensors: Sequence[Any], inputs: int
    ) -> bool:
        """Linear bf16, fp16 or fp32, the same for q, k, v, output and, without scales, pool."""
        found, first = tensors[position].desc, tensors[0].desc.type
        with_scales = inputs > len(INPUTS)
        if found.format != self.module.TensorFormat.LINEAR:
            return False
        if position in INTEGERS:
            return found.type == self.module.int32
        if with_scales and position == POOL:
            return found.type == self.module.int8
        if with_scales and position == len(INPUTS):
            return found.type == self.module.float32
        return found.type == first and first.name in ("BF16", "HALF", "FLOAT")

    @_kept
    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Raises EngineError if the kernels are for another pool."""
        spec, pool = self.host.kernels.spec, inputs[POOL].desc
        found = (TYPES[pool.type.name], *tuple(pool.dims)[2:])
        expected = (spec.pool_dtype, spec.kv_heads, 2, spec.page_tokens, spec.head_dim)
        if found != expected:
            raise EngineError(
                f"{KERNELS_FILE} is for pages of {expected}, this model's are {found}: build the "
                "engine set again"
            )

    @_kept
    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Maximum bytes of any run within the profile."""
        table = inputs[TABLE].max
        return self.host.kernels.workspace_bytes(inputs[0].max[0], table[-1], table[0])

    def get_valid_tactics(self) -> list[int]:
        return [1]

    def set_tactic(self, tactic: int) -> None:
        pass

    def get_aliased_input(self, output: int) -> int:
        return -1

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        pass

    @_kept
    def enqueue(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        pointers: Sequence[int],
        results: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        shapes = [tuple(tensor.dims) for tensor in inputs]
        self.host.kernels.attention(
            **dict(zip((*INPUTS, SCALES), pointers, strict=False)),
            out=results[0],
            workspace=workspace,
            rows=shapes[0][0],
            pool_shape=shapes[POOL],
            where_shape=shapes[POOL + 1],
            table_shape=shapes[TABLE],
            layer=int(self.fields["layer"][0]),
            scale=float(self.fields["scale"][0]),
            stream=stream,
        )


class PluginCreator:
    """Creates plugins from the attributes of an ONNX node, or from their serialized form in a
    plan."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.host: PluginHost | None = None
        self.name = PLUGIN
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = NAMESPACE
        self.field_names = _field_collection(
            module, {name: np.array([], kind) for name, kind in FIELDS.items()}
        )

    @_kept
    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
        if self.host is None:
            raise EngineError(
                f"a plan with the plugin {NAMESPACE}::{PLUGIN} was not loaded by vicort: "
                "open its folder with EngineSet.open"
            )
        found = {
            field.name: np.array(field.data, FIELDS[field.name])
            for field in fields
            if field.name in FIELDS
        }
        missing = sorted(set(FIELDS) - set(found))
        if missing:
            raise EngineError(
                f"node {name} has no {', '.join(missing)}: build the engine set again"
            )
        spec = self.host.kernels.spec
        if (*spec.sections, spec.interleaved, *spec.frequencies) != (
            *found["sections"].tolist(),
            *found["interleaved"].tolist(),
            *found["frequencies"].tolist(),
        ):
            raise EngineError(
                f"{KERNELS_FILE} is for another rotary embedding than node {name}: build the "
                "engine set again"
            )
        bases = [
            getattr(self.module, f"IPluginV3{part}")
            for part in ("", "OneCore", "OneBuildV2", "OneRuntime")
        ]
        return _derive(BoundedAttention, *bases)(self.module, self.host, found)


def _derive(plain: type, *bases: type) -> Any:
    """`plain` as a subclass of TensorRT classes, which are known only once a module is loaded."""
    return _derived(plain, bases)


@functools.cache
def _derived(plain: type, bases: tuple[type, ...]) -> Any:
    def make(self: Any, *args: Any) -> None:
        for base in bases:
            base.__init__(self)  # type: ignore[misc]  # pybind11 requires each call
        plain.__init__(self, *args)  # type: ignore[misc]

    return type(plain.__name__, (plain, *bases), {"__init__": make})


def _field_collection(module: Any, fields: dict[str, np.ndarray]) -> Any:
    kinds = {
        np.dtype(np.int32): module.PluginFieldType.INT32,
        np.dtype(np.float32): module.PluginFieldType.FLOAT32,
    }
    return module.PluginFieldCollection(
        [module.PluginField(name, value, kinds[value.dtype]) for name, value in fields.items()]
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class TensorRTBackend:
    """The TensorRT backend on one GPU, opened for one engine set."""

    loading_threads = 1

    def __init__(self, folder: Path) -> None:
        """Raises DeviceError if there is no GPU or the engines do not fit into it, EngineError if
        TensorRT or a cubin for this GPU is missing."""
        from vicort.runtime.devices.cuda import open_gpu  # late: a build does not open a GPU

        self._manifest = Manifest.model_validate_json((folder / FILE_NAME).read_text())
        if self._manifest.flavour is None:
            raise EngineError(
                f"{folder} is for 'tensorrt' without a flavour in its manifest: rebuild with "
                f"`{self._manifest.build_command}`"
            )
        self._tensorrt = load_tensorrt(self._manifest.flavour)
        self._gpu = open_gpu()
        self._memory = gpu_memory(folder, self._manifest, self._gpu)
        check_fits(folder, self._manifest, self._gpu, self._memory)
        self._run_bytes = 0  # of all contexts of a session
        kernels = Kernels.read(folder / KERNELS_FILE)
        self._kernels = LoadedKernels(
            kernels,
            capability=self._gpu.capability,
            multiprocessors=self._gpu.multiprocessors,
            launcher=self._gpu.launcher,
        )

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> TensorRTEngine:
        """streams: not limited, each gets its own contexts and memory."""
        engine = TensorRTEngine(path, graph, self._manifest, self._tensorrt, self._kernels)
        self._run_bytes += streams * engine.context_bytes
        return engine

    def new_device(self, overlap: bool) -> Device:
        from vicort.runtime.devices.cuda import CudaDevice

        return CudaDevice(
            self._gpu,
            self._kernels,
            threads=overlap,
            memory=self._memory,
            run_bytes=self._run_bytes,
        )

    def memory(self) -> MachineMemory:
        return self._memory


class TensorRTEngine:
    """A plan, with execution contexts per stream. Streams share the weights."""

    def __init__(
        self, path: Path, signature: GraphSpec, manifest: Manifest, tensorrt: TensorRT, kernels: Any
    ) -> None:
        """Raises EngineError if the plan cannot be loaded, or has other tensors than
        `signature`."""
        self.signature = signature
        self._path = path
        self._tensorrt = tensorrt
        self._check = BindingsCheck(signature)
        self._warned = False  # of runs that are not captured
        self._contexts: weakref.WeakKeyDictionary[CudaStream, StreamContexts] = (
            weakref.WeakKeyDictionary()
        )
        with tensorrt.plugins(kernels) as self._host:
            self._engine = self._deserialise(manifest)
        if signature.refit_from:
            self._refit(path.parent / signature.refit_from)
        check_tensors(str(path), signature, *self._tensors())
        self._runtime_config = self._configure()

    def enqueue(self, bindings: Bindings, stream: Any) -> StreamEvent:
        """Run on `stream`, reading and writing the bound arrays in place.

        Raises EngineError if a dimension is larger than the plan was built for.
        """
        self._check_profile(bindings)
        self._check(bindings)
        return stream.run(self._run, on_device(bindings), stream)

    def _check_profile(self, bindings: Bindings) -> None:
        """A size above the plan's profile is the user's limit, not a bug: raises EngineError."""
        for spec in self.signature.inputs:
            for name, size in zip(spec.shape, bindings[spec.name].shape, strict=False):
                maximum = size if isinstance(name, int) else self.signature.dimensions[name].max
                if size > maximum:
                    raise EngineError(
                        f"{self._path.name} takes {name} up to {maximum}, not {size}: give less, "
                        "or "
                        "build for larger chunks"
                    )

    def graph_report(self, stream: Any) -> dict[str, Any]:
        """Number of CUDA graphs of this engine on the stream, and why other runs were not
        captured."""
        contexts = self._contexts.get(stream)
        if contexts is None:
            return {"graphs": 0, "refusals": []}
        return {"graphs": contexts.graphs, "refusals": list(contexts.refusals)}

    def layer_times(self, bindings: Bindings, stream: Any, runs: int) -> dict[str, list[float]]:
        """Layer -> milliseconds in each of `runs` runs, in the plan's order, from TensorRT's
        profiler. Blocks until the runs are done.

        The runs use no CUDA graph and are slower: the sum over layers is not the usual run time.
        """
        return stream.run(self._layer_times, on_device(bindings), stream, runs).done()

    def _layer_times(
        self, bindings: Arrays, stream: CudaStream, runs: int
    ) -> dict[str, list[float]]:
        return self._contexts_of(stream).layer_times(bindings, runs)

    def _run(self, bindings: Arrays, stream: CudaStream) -> None:
        self._contexts_of(stream).run(bindings)

    def _contexts_of(self, stream: CudaStream) -> StreamContexts:
        contexts = self._contexts.get(stream)
        if contexts is None:
            contexts = self._contexts[stream] = StreamContexts(self, stream)
        return contexts

    @property
    def context_bytes(self) -> int:
        """Device memory that the contexts of a stream share, at most."""
        return int(self._engine.device_memory_size_v2)

    def new_profiler(self) -> Any:
        return _derive(LayerTimes, self._tensorrt.module.IProfiler)()

    def new_context(self) -> Any:
        """An execution context without device memory."""
        strategy = self._tensorrt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._runtime_config or strategy)
        if context is None:
            raise self.failure("no execution context")
        return context

    def warn_uncaptured(self, error: Exception) -> None:
        """Tell the user, once, that a run could not be captured."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: some runs are not captured in a CUDA graph, and start more slowly (%s)",
                self._path.name,
                error,
            )

    def failure(self, what: str) -> EngineError:
        """The error of a failed TensorRT call: a plugin's exception if there is one, otherwise the
        first error of the log."""
        reason, error = self._tensorrt.logger.reason(), self._host.take_failure()
        failure = EngineError(
            f"{self._path.name}: {what}: {_first_line(error) if error else reason}"
        )
        failure.__cause__ = error
        return failure

    def _deserialise(self, manifest: Manifest) -> Any:
        trt = self._tensorrt
        self._runtime = trt.module.Runtime(trt.logger)
        with (
            self._path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        ):
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineError(f"{self._path}: {self._refusal(plan, manifest)}")
        return engine

    def _refusal(self, plan: mmap.mmap, manifest: Manifest) -> str:
        """Why a plan cannot be loaded: built by another version, for another GPU, or TensorRT's
        reason."""
        trt, built = self._tensorrt, manifest.versions.get(PIP_NAMES[self._tensorrt.flavour])
        reason, error = trt.logger.reason(), self._host.take_failure()
        if error:
            return _first_line(error)
        if built != trt.version:
            return (
                f"built by {trt.flavour} {built}, which {trt.version} cannot load: rebuild with "
                f"`{manifest.build_command}`"
            )
        if hasattr(self._runtime, "get_engine_validity"):
            marks = int(self._runtime.get_engine_validity(plan)[1])
            named = trt.module.EngineInvalidityDiagnostics.__members__
            reason = (
                ", ".join(
                    name.lower().replace("_", " ")
                    for name, mark in named.items()
                    if marks & int(mark)
                )
                or reason
            )
        return (
            f"{trt.flavour} {trt.version} cannot load it ({reason}), it was built for "
            f"{manifest.target}: use such a GPU, or rebuild with `{manifest.build_command}`"
        )

    def _refit(self, model: Path) -> None:
        """Load the weights of a stripped plan from the ONNX file in the same folder."""
        trt = self._tensorrt
        refitter = trt.module.Refitter(self._engine, trt.logger)
        if (
            not trt.module.OnnxParserRefitter(refitter, trt.logger).refit_from_file(str(model))
            or not refitter.refit_cuda_engine()
        ):
            raise self.failure(f"it cannot be refitted with the weights of {model.name}")

    def _tensors(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """The inputs and outputs of the plan, in the manifest's form."""
        engine, trt = self._engine, self._tensorrt.module
        renamed = {plan: name for name, plan in self.signature.plan_names.items()}
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
            side.append(
                tensor_spec(
                    renamed.get(name, name),
                    engine.get_tensor_dtype(name),
                    engine.get_tensor_shape(name),
                )
            )
        return inputs, outputs

    def _configure(self) -> Any:
        """How contexts of TensorRT for RTX compile kernels; None for the other flavour.

        Compilation is eager for each new shape, not in the background: a CUDA graph would keep the
        slower first kernels for ever. All contexts share the compiled kernels.
        """
        trt = self._tensorrt.module
        if self._tensorrt.flavour != "tensorrt_rtx":
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._compiled = config.create_runtime_cache()
        config.set_runtime_cache(self._compiled)
        return config


class LayerTimes:
    """Collects layer times from TensorRT's profiler. `_derive` adds the base class."""

    def __init__(self) -> None:
        self._runs: list[dict[str, float]] = []

    def begin(self) -> None:
        self._runs.append({})

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        self._runs[-1][layer_name] = self._runs[-1].get(layer_name, 0.0) + ms

    def without_warm_up(self) -> dict[str, list[float]]:
        """Times of all runs but the first."""
        counted = self._runs[1:]
        return (
            {name: [run.get(name, 0.0) for run in counted] for name in counted[0]}
            if counted
            else {}
        )


def on_device(bindings: Bindings) -> Arrays:
    return {name: as_device(array) for name, array in bindings.items()}


def check_tensors(
    what: str, graph: GraphSpec, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Raises EngineError if the tensors differ from the graph's."""
    mismatch = describe_mismatch(graph, inputs, outputs)
    if mismatch:
        raise EngineError(f"{what} is not what the manifest says: {mismatch}")


def missing_gpu() -> str | None:
    """Why no GPU of this machine can be used; None if one can."""
    from vicort.runtime.devices.cuda import open_gpu

    try:
        open_gpu()
    except DeviceError as error:
        return str(error).partition(":")[0]
    return None


def gpu_capability() -> tuple[int, int] | None:
    """Of this machine's GPU, (9, 0) for sm_90; None without one that can be used."""
    from vicort.runtime.devices.cuda import open_gpu

    try:
        return open_gpu().capability
    except DeviceError:
        return None


def tensor_spec(name: str, dtype: Any, shape: Sequence[int]) -> TensorSpec:
    """A TensorRT tensor in the manifest's form."""
    return TensorSpec(
        name=name,
        dtype=TYPES.get(dtype.name, dtype.name),
        shape=tuple(size if size >= 0 else "?" for size in shape),
    )


class StreamContexts:
    """The execution contexts of an engine on one stream: one for plain runs, and one per CUDA
    graph, because a graph uses its context's state. They run one after another, so they share one
    block of memory."""

    def __init__(self, engine: TensorRTEngine, stream: CudaStream) -> None:
        self._engine = engine
        # weak: the stream is the key under which these contexts are kept
        self._stream = weakref.proxy(stream)
        self._plain = engine.new_context()
        self._graphs: GraphCache[Captured] = GraphCache(MAX_GRAPHS)
        self._memory: DeviceArray | None = None
        self.refusals: list[str] = []  # why runs could not be captured

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def run(self, bindings: Arrays) -> None:
        tensors = [
            (spec.name, bindings[spec.name])
            for spec in (*self._engine.signature.inputs, *self._engine.signature.outputs)
        ]
        key = tuple((array.shape, array.pointer) for _, array in tensors)
        captured = self._graphs.get(key)
        if captured:
            captured.graph.launch(self._stream)
        elif self._graphs.is_due(key):
            self._capture(key, bindings)
        else:
            self._enqueue(self._plain, bindings)

    def layer_times(self, bindings: Arrays, runs: int) -> dict[str, list[float]]:
        """Times of `runs` plain runs after a warm-up run."""
        context = self._engine.new_context()
        context.profiler = layers = self._engine.new_profiler()
        for _ in range(runs + 1):
            layers.begin()
            self._enqueue(context, bindings)  # reports to the profiler before it returns
        self._release([context])
        return layers.without_warm_up()

    def _capture(self, key: object, bindings: Arrays) -> None:
        """Run plainly once more, as the warm-up that capture requires, then capture a graph."""
        context = self._engine.new_context()
        self._enqueue(context, bindings)
        try:
            if not getattr(context, "is_stream_capturable", lambda _: True)(self._stream.handle):
                raise EngineError("TensorRT cannot be captured here")
            graph = self._stream.capture(lambda: self._execute(context))
        except (DeviceError, EngineError) as error:
            self._stream.device.memory()  # raises why, if the GPU is lost
            self._engine.warn_uncaptured(error)
            self.refusals.append(str(error))
            self._graphs.refuse(key)
            return
        self._release(self._graphs.put(key, Captured(context, graph)))

    def _enqueue(self, context: Any, bindings: Arrays) -> None:
        for spec in self._engine.signature.inputs:
            if not context.set_input_shape(spec.name, tuple(bindings[spec.name].shape)):
                raise self._engine.failure(
                    f"{spec.name} of shape {bindings[spec.name].shape} is rejected"
                )
        self._give_memory(context)
        for name, array in bindings.items():
            if array.pointer % DEVICE_ALIGNMENT:
                raise ValueError(
                    f"{name!r} lies at {array.pointer:#x}, which is no multiple of "
                    f"{DEVICE_ALIGNMENT} "
                    "bytes"
                )
            if not context.set_tensor_address(
                self._engine.signature.plan_names.get(name, name), array.pointer
            ):
                raise self._engine.failure(f"the address of {name} is rejected")
        self._execute(context)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            self._stream.device.memory()  # raises why, if the GPU is lost
            raise self._engine.failure("TensorRT could not enqueue it")

    def _give_memory(self, context: Any) -> None:
        """Provide the memory for a run of these shapes. If the block has to grow, graphs that were
        captured with the old one are released. It does not grow further than the plan's largest
        shapes need."""
        needed = context.update_device_memory_size_for_shapes()
        if self._memory is None or needed > self._memory.nbytes:
            old = self._memory
            ahead = min(int(GROWTH * old.nbytes), self._engine.context_bytes) if old else 0
            grown = max(needed, ahead, DEVICE_ALIGNMENT)
            self._release([*self._graphs.clear(), old] if old else [])
            self._memory = self._stream.device.empty((grown,), np.uint8)
        context.set_device_memory(self._memory.pointer, self._memory.nbytes)

    def _release(self, things: list[Any]) -> None:
        """Keep them alive until the device has done all work so far, which may still use them."""
        if things:
            self._stream.notify(_drop, things)


def _drop(things: list[Any]) -> None:
    for thing in things:
        if isinstance(thing, Captured):
            thing.graph.close()
    things.clear()


@dataclass(frozen=True)
class Captured:
    context: Any  # the graph uses its state
    graph: CudaGraph
