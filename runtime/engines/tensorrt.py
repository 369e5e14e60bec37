"""Engines on TensorRT, of either flavour: `tensorrt`, or `tensorrt_rtx` (TensorRT for RTX). The
runtime calls it in this file only.

The switch, loading and the plugin's build side are tested against the real tensorrt_rtx; what a GPU
is needed for, against a stand-in. Never run on a GPU here.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

import numpy as np

from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.engines.bindings import BindingsCheck, describe_mismatch
from vicort.runtime.engines.graph_cache import GraphCache
from vicort.runtime.errors import DeviceError, EngineError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.kernels import Kernels
from vicort.runtime.manifest import FILE_NAME, Flavour, GraphSpec, Manifest, TensorSpec

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda import CudaGraph, CudaStream, DeviceArray
    from vicort.runtime.devices.device import Device, StreamEvent

    Arrays = Mapping[str, DeviceArray]

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)  # the first that loads is taken
PIP_NAMES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
# by TensorRT's names
TYPES = {
    "FLOAT": "float32",
    "BF16": "bfloat16",
    "HALF": "float16",
    "INT32": "int32",
    "UINT8": "uint8",
}
PLUGIN, NAMESPACE, PLUGIN_VERSION = "BoundedAttention", "vicort", "1"
FIELDS = {"layer": np.int32, "scale": np.float32, "sections": np.int32, "frequencies": np.float32}
INPUTS = ("q", "k", "v", "pos", "pool", "where", "table")
INTEGERS = (3, 5, 6)  # which inputs of the plugin are int32: pos, where, table
MAX_GRAPHS = 32  # CUDA graphs of an engine on a stream, each with an execution context of its own
GROWTH = 1.5  # of the memory of a stream's contexts, when a run wants more
ALIGNMENT = 256  # bytes, of every address that TensorRT is given


class TensorRT:
    """A TensorRT module, with the one logger and the one plugin creator that a process has of
    it."""

    def __init__(self, module: Any, flavour: Flavour) -> None:
        self.module, self.flavour = module, flavour
        self.version: str = module.__version__
        self.logger = _derive(Logger, module.ILogger)()
        self.creator: Any = None
        self._lock = threading.Lock()

    @contextmanager
    def plugins(self, kernels: Any) -> Iterator[PluginHost]:
        """Plugins that are made inside, by a parser or from a plan, have these kernels: `Kernels`
        to build, `LoadedKernels` to run."""
        with self._lock:
            if self.creator is None:
                self.creator = _derive(PluginCreator, self.module.IPluginCreatorV3One)(self.module)
                if not self.module.get_plugin_registry().register_creator(self.creator, NAMESPACE):
                    raise EngineError(
                        f"{self.flavour} {self.version} refuses the plugin "
                        f"{NAMESPACE}::{PLUGIN}: build with --no-plugin"
                    )
            self.creator.host = host = PluginHost(kernels)
            try:
                yield host
            finally:
                self.creator.host = None


def load_tensorrt(flavour: Flavour | None = None) -> TensorRT:
    """TensorRT of a flavour, or of the first that is installed. Raises EngineError, with the pip
    command, if there is none."""
    failures = []
    for name in [flavour] if flavour else FLAVOURS:
        try:
            return _load(name)
        except (
            ImportError,
            OSError,
            RuntimeError,
            AttributeError,
        ) as error:  # a package may be there without its libraries
            failures.append(f"{name}: {_first_line(error)}")
    wanted = PIP_NAMES[flavour or "tensorrt_rtx"]
    raise EngineError(
        f"TensorRT cannot be loaded ({'; '.join(failures)}): run `pip install {wanted}`"
    )


@functools.cache  # a process has one logger and one plugin creator of each
def _load(flavour: Flavour) -> TensorRT:
    return TensorRT(importlib.import_module(flavour), flavour)


class Logger:
    """Keeps what TensorRT reports: its calls say only that they failed, the reason goes to the
    log."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.listener: Callable[[str], None] | None = None  # of every message, errors or not
        self.echo: TextIO | None = None  # where errors are written to at once

    def log(self, severity: Any, message: str) -> None:
        if severity.name in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
            if self.echo:
                print(message, file=self.echo, flush=True)
        if self.listener:
            self.listener(message)

    def reason(self) -> str:
        """The first error since the last call, in one line."""
        errors, self.errors = self.errors, []
        return " ".join(errors[0].split()) if errors else "it gave no reason"


class PluginHost:
    """What the plugins of one engine share: kernels, and what went wrong in any of them.

    TensorRT drops an exception of a plugin's method, or turns it into a number; it is kept here for
    whoever called TensorRT.
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
    """The op of DESIGN 3 as a TensorRT plugin: one class to build and to run, made complete by
    `_derive`.

    Inputs q [C,Hq,D], k and v [C,Hkv,D], pos [C,3], pool [P,L,Hkv,2,T,D], where [P,L|1,Hkv|1,T,3],
    table [L|1,Hkv|1,N]; output [C,Hq,D].
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
        """Linear bf16, fp16 or fp32, the same for all but the integers."""
        found, first = tensors[position].desc, tensors[0].desc.type
        if found.format != self.module.TensorFormat.LINEAR:
            return False
        return (
            found.type == self.module.int32
            if position in INTEGERS
            else found.type == first and first.name in ("BF16", "HALF", "FLOAT")
        )

    @_kept
    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Raises EngineError if the kernels are for another pool."""
        spec, pool = self.host.kernels.spec, inputs[4].desc
        mine = (TYPES[pool.type.name], *tuple(pool.dims)[2:])
        theirs = (spec.dtype, spec.kv_heads, 2, spec.page_tokens, spec.head_dim)
        if mine != theirs:
            raise EngineError(
                f"{KERNELS_FILE} is for pages of {theirs}, this model's are {mine}: build the "
                "engine set again"
            )

    @_kept
    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Bytes that no run within the profile exceeds."""
        return self.host.kernels.workspace_bytes(inputs[0].max[0], inputs[6].max[-1])

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
            **dict(zip(INPUTS, pointers, strict=True)),
            out=results[0],
            workspace=workspace,
            rows=shapes[0][0],
            pool_shape=shapes[4],
            where_shape=shapes[5],
            table_shape=shapes[6],
            layer=int(self.fields["layer"][0]),
            scale=float(self.fields["scale"][0]),
            stream=stream,
        )


class PluginCreator:
    """Makes plugins from the attributes of an ONNX node, or from what a plan holds of them."""

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
                f"a plan with the plugin {NAMESPACE}::{PLUGIN} is loaded by others than vicort: "
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
        if (*spec.sections, *spec.frequencies) != (
            *found["sections"].tolist(),
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
    """`plain` as a class of TensorRT's own: its classes are known only once a module is loaded."""
    return _derived(plain, bases)


@functools.cache
def _derived(plain: type, bases: tuple[type, ...]) -> Any:
    def make(self: Any, *args: Any) -> None:
        for base in bases:
            base.__init__(self)  # type: ignore[misc]  # pybind11 wants each of them called
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
    """One GPU, made ready for one engine set."""

    def __init__(self, folder: Path) -> None:
        """Raises DeviceError if there is no GPU, EngineError if TensorRT, or a cubin for this GPU,
        is missing."""
        from vicort.runtime.devices.cuda import open_gpu  # late: a build needs none of it

        self._manifest = Manifest.model_validate_json((folder / FILE_NAME).read_text())
        if self._manifest.flavour is None:
            raise EngineError(
                f"{folder} is for 'tensorrt', and does not say which: rebuild with "
                f"`{self._manifest.build_command}`"
            )
        self._tensorrt = load_tensorrt(self._manifest.flavour)
        self._gpu = open_gpu()
        kernels = Kernels.read(folder / KERNELS_FILE)
        self._kernels = LoadedKernels(
            kernels,
            capability=self._gpu.capability,
            multiprocessors=self._gpu.multiprocessors,
            launcher=self._gpu.launcher,
        )

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> TensorRTEngine:
        """streams: as many as there are; each has contexts and memory of its own."""
        return TensorRTEngine(path, graph, self._manifest, self._tensorrt, self._kernels)

    def new_device(self, overlap: bool) -> Device:
        from vicort.runtime.devices.cuda import CudaDevice

        return CudaDevice(self._gpu, self._kernels, threads=overlap)


class TensorRTEngine:
    """A plan, with execution contexts for each stream that runs it. The weights are shared."""

    def __init__(
        self, path: Path, signature: GraphSpec, manifest: Manifest, tensorrt: TensorRT, kernels: Any
    ) -> None:
        """Raises EngineError if the plan cannot be loaded, or does not have the tensors of
        `signature`."""
        self.signature = signature
        self._path, self._tensorrt = path, tensorrt
        self._check = BindingsCheck(signature)
        self._lanes: weakref.WeakKeyDictionary[CudaStream, StreamContexts] = (
            weakref.WeakKeyDictionary()
        )
        with tensorrt.plugins(kernels) as self._host:
            self._engine = self._deserialise(manifest)
        if signature.refit_from:
            self._refit(path.parent / signature.refit_from)
        check_tensors(str(path), signature, *self._tensors())
        self._runtime_config = self._configure()

    def enqueue(self, bindings: Any, stream: Any) -> StreamEvent:
        """Run on `stream`, reading and writing the bound arrays in place.

        Raises EngineError if a dimension is larger than the plan was built for.
        """
        self._check_profile(bindings)
        self._check(bindings)
        return stream.run(self._run, bindings, stream)

    def _check_profile(self, bindings: Arrays) -> None:
        """What is too large for this plan may be no defect, but a wish that another plan can
        fulfil: an error for the user."""
        for spec in self.signature.inputs:
            for name, size in zip(spec.shape, bindings[spec.name].shape, strict=False):
                most = size if isinstance(name, int) else self.signature.dimensions[name].max
                if size > most:
                    raise EngineError(
                        f"{self._path.name} takes {name} up to {most}, not {size}: give less, or "
                        "build for larger chunks"
                    )

    def graph_report(self, stream: Any) -> dict[str, Any]:
        """How many CUDA graphs this stream has of the engine, and why other runs could not be
        captured."""
        lane = self._lanes.get(stream)
        return (
            {"graphs": lane.graphs, "refusals": list(lane.refusals)}
            if lane
            else {"graphs": 0, "refusals": []}
        )

    def layer_times(self, bindings: Any, stream: Any, runs: int) -> dict[str, list[float]]:
        """Milliseconds of each layer in each of `runs` runs, in the plan's order, by TensorRT's own
        profiler; waits for them.

        Outside of CUDA graphs, on a context of its own. A run is slower so, and its layers' sum is
        not what it takes otherwise.
        """
        return stream.run(self._layer_times, bindings, stream, runs).done()

    def _layer_times(
        self, bindings: Arrays, stream: CudaStream, runs: int
    ) -> dict[str, list[float]]:
        return self._lane(stream).layer_times(bindings, runs)

    def _run(self, bindings: Arrays, stream: CudaStream) -> None:
        self._lane(stream).run(bindings)

    def _lane(self, stream: CudaStream) -> StreamContexts:
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = StreamContexts(self, stream)
        return lane

    def new_profiler(self) -> Any:
        return _derive(LayerTimes, self._tensorrt.module.IProfiler)()

    def new_context(self) -> Any:
        """An execution context without memory."""
        strategy = self._tensorrt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._runtime_config or strategy)
        if context is None:
            raise self.failure("no execution context")
        return context

    def failure(self, what: str) -> EngineError:
        """What went wrong in a call of TensorRT: a plugin's own exception if there is one, else
        what the log says."""
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
        """Why a plan is not taken: of another version, for another GPU, or what TensorRT itself
        says."""
        trt, built = self._tensorrt, manifest.versions.get(PIP_NAMES[self._tensorrt.flavour])
        reason, error = trt.logger.reason(), self._host.take_failure()
        if error:
            return _first_line(error)
        if built != trt.version:
            return f"built by {trt.flavour} {built}, which {trt.version} does not take"
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
            f"{trt.flavour} {trt.version} does not take it ({reason}), it was built for "
            f"{manifest.target}"
        )

    def _refit(self, model: Path) -> None:
        """Give a stripped plan its weights, from the ONNX file beside it."""
        trt = self._tensorrt
        refitter = trt.module.Refitter(self._engine, trt.logger)
        if (
            not trt.module.OnnxParserRefitter(refitter, trt.logger).refit_from_file(str(model))
            or not refitter.refit_cuda_engine()
        ):
            raise self.failure(f"it does not take the weights of {model.name}")

    def _tensors(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """The plan's inputs and outputs, as the manifest would write them."""
        engine, trt = self._engine, self._tensorrt.module
        ours = {plan: name for name, plan in self.signature.plan_names.items()}
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
            side.append(
                tensor_spec(
                    ours.get(name, name),
                    engine.get_tensor_dtype(name),
                    engine.get_tensor_shape(name),
                )
            )
        return inputs, outputs

    def _configure(self) -> Any:
        """How contexts of TensorRT for RTX compile their kernels; None in the other flavour.

        At once for each new shape, rather than in the background: a CUDA graph would keep the
        slower kernels of before for ever. What is compiled is shared by all contexts.
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
    """What TensorRT tells of the layers of each run, made complete by `_derive`."""

    def __init__(self) -> None:
        self._runs: list[dict[str, float]] = []

    def begin(self) -> None:
        self._runs.append({})

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        self._runs[-1][layer_name] = self._runs[-1].get(layer_name, 0.0) + ms

    def after_the_first(self) -> dict[str, list[float]]:
        counted = self._runs[1:]
        return (
            {name: [run.get(name, 0.0) for run in counted] for name in counted[0]}
            if counted
            else {}
        )


def check_tensors(
    what: str, graph: GraphSpec, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Raises EngineError if these are not the graph's tensors."""
    mismatch = describe_mismatch(graph, inputs, outputs)
    if mismatch:
        raise EngineError(f"{what} is not what the manifest says: {mismatch}")


def missing_gpu() -> str | None:
    """Why no GPU of this machine can be used, in a few words; None if one can."""
    from vicort.runtime.devices.cuda import open_gpu

    try:
        open_gpu()
    except DeviceError as error:
        return str(error).partition(":")[0]
    return None


def tensor_spec(name: str, dtype: Any, shape: Sequence[int]) -> TensorSpec:
    """A tensor of TensorRT as the manifest would write it."""
    return TensorSpec(
        name=name,
        dtype=TYPES.get(dtype.name, dtype.name),
        shape=tuple(size if size >= 0 else "?" for size in shape),
    )


class StreamContexts:
    """An engine on one stream: a context for plain runs, one more for each CUDA graph, since a
    graph keeps its context's state, and one block of memory for them all, since they run one after
    the other."""

    def __init__(self, engine: TensorRTEngine, stream: CudaStream) -> None:
        # The stream owns its lane: a reference from here would keep both for ever.
        self._engine, self._stream = engine, weakref.proxy(stream)
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
        """Of `runs` plain runs behind one that is not counted."""
        context = self._engine.new_context()
        context.profiler = layers = self._engine.new_profiler()
        for _ in range(runs + 1):
            layers.begin()
            self._enqueue(context, bindings)  # tells the profiler before it returns
        self._let_go([context])
        return layers.after_the_first()

    def _capture(self, key: object, bindings: Arrays) -> None:
        """Run once more plainly, which is the warm-up that capturing wants, and keep the next run
        as a graph."""
        context = self._engine.new_context()
        self._enqueue(context, bindings)
        try:
            if not getattr(context, "is_stream_capturable", lambda _: True)(self._stream.handle):
                raise EngineError("TensorRT cannot be captured here")
            graph = self._stream.capture(lambda: self._execute(context))
        except (DeviceError, EngineError) as error:
            self.refusals.append(str(error))
            self._graphs.refuse(key)
            return
        self._let_go(self._graphs.put(key, Captured(context, graph)))

    def _enqueue(self, context: Any, bindings: Arrays) -> None:
        for spec in self._engine.signature.inputs:
            if not context.set_input_shape(spec.name, tuple(bindings[spec.name].shape)):
                raise self._engine.failure(
                    f"{spec.name} of shape {bindings[spec.name].shape} is refused"
                )
        self._give_memory(context)
        for name, array in bindings.items():
            if array.pointer % ALIGNMENT:
                raise ValueError(
                    f"{name!r} lies at {array.pointer:#x}, which is no multiple of {ALIGNMENT} "
                    "bytes"
                )
            if not context.set_tensor_address(
                self._engine.signature.plan_names.get(name, name), array.pointer
            ):
                raise self._engine.failure(f"the address of {name} is refused")
        self._execute(context)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise self._engine.failure("TensorRT could not enqueue it")

    def _give_memory(self, context: Any) -> None:
        """What a run of these shapes needs. Graphs that were captured with a smaller block go with
        it."""
        wanted = context.update_device_memory_size_for_shapes()
        if self._memory is None or wanted > self._memory.nbytes:
            old = self._memory
            grown = max(wanted, int(GROWTH * old.nbytes) if old else 0, ALIGNMENT)
            self._let_go([*self._graphs.clear(), old] if old else [])
            self._memory = self._stream.device.empty((grown,), np.uint8)
        context.set_device_memory(self._memory.pointer, self._memory.nbytes)

    def _let_go(self, things: list[Any]) -> None:
        """Hold on to them until the stream has come here: runs that use them may still be under
        way."""
        if things:
            self._stream.notify(_drop, things)


def _drop(things: list[Any]) -> None:
    for thing in things:
        if isinstance(thing, Captured):
            thing.graph.close()
    things.clear()


@dataclass(frozen=True)
class Captured:
    context: Any  # whose state the graph uses
    graph: CudaGraph
