"""Builds TensorRT plans from ONNX graphs, each in a child process. All calls of TensorRT at build
time are in this file.

A child process turns an abort in C++ code into an error of one line, returns its memory between two
plans, and gets the library path that TensorRT for RTX needs.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vicort.export.kernels.architectures import ARCHITECTURES, of_targets
from vicort.runtime.engines.tensorrt import (
    KERNELS_FILE,
    PIP_NAMES,
    PluginHost,
    TensorRT,
    check_tensors,
    gpu_capability,
    load_tensorrt,
    missing_gpu,
    tensor_spec,
)
from vicort.runtime.errors import ConfigError, EngineError, VicortError
from vicort.runtime.kernels import Kernels, fitting_architecture
from vicort.runtime.locations import user_cache
from vicort.runtime.manifest import Flavour, GraphSpec, Precision, TensorSpec, Weights
from vicort.runtime.written_files import write_file

logger = logging.getLogger(__name__)

RTX_LIBRARY = "libtensorrt_rtx.so"
__all__ = [
    "KERNELS_FILE",
    "PIP_NAMES",
    "BuiltPlan",
    "PlanJob",
    "Progress",
    "build",
    "build_plan",
    "check_number_formats",
    "check_targets",
    "kernel_architectures",
    "load_tensorrt",
    "missing_gpu",
]
# names in TensorRT's listing of a plan
LISTED_TYPES = {
    "Float": "float32",
    "BFloat16": "bfloat16",
    "Half": "float16",
    "Int32": "int32",
    "UInt8": "uint8",
    "Int8": "int8",
}
# GPUs that multiply in a format, from TensorRT's error messages
LEAST_TARGETS = {"fp32": 80, "bf16": 80, "fp8": 89}
Progress = Callable[[str, float], None]  # called with a phase's name and the fraction done, 0 to 1


class PlanJob(BaseModel):
    """The input of the child process."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Path  # an ONNX file, with references to its weights
    plan: Path
    graph: GraphSpec
    flavour: Flavour
    kernels: Path | None = None  # kernels.zip; None = a graph without plugins
    strip: bool = False
    targets: tuple[str, ...] = ()  # sm_80, …; none = TensorRT's default


class BuiltPlan(BaseModel):
    """The result of the child process."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layer_types: dict[str, int]  # layers of the network, by type
    plugin_layers: int


def build_plan(job: PlanJob, progress: Progress = lambda phase, done: None) -> BuiltPlan:
    """Build one plan in a child process.

    Raises EngineError with TensorRT's reason and, if it names one, the node, or with the exit
    status of the child.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        environment = os.environ | loader_path(job.flavour, Path(folder))
        command = [sys.executable, "-m", "vicort.export.tensorrt_plans", job.model_dump_json()]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as child:
            try:
                answer = _listen(child, progress)
            except BaseException:
                child.kill()
                raise
        if answer is None:
            errors.seek(0)
            raise EngineError(_abrupt_end(job, child.returncode, errors.read()))
    if "error" in answer:
        raise EngineError(answer["error"])
    return BuiltPlan.model_validate(answer["built"])


def loader_path(flavour: Flavour, folder: Path) -> dict[str, str]:
    """Environment variables with which the parser finds its library: TensorRT for RTX loads it by a
    name that its wheel does not contain."""
    found = importlib.util.find_spec("tensorrt_rtx_libs") if flavour == "tensorrt_rtx" else None
    if found is None or not found.submodule_search_locations:
        return {}
    library = next(
        iter(sorted(Path(found.submodule_search_locations[0]).glob(f"{RTX_LIBRARY}.*"))), None
    )
    if library is None:
        return {}
    (folder / RTX_LIBRARY).symlink_to(library)
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")])
        )
    }


def _listen(child: subprocess.Popen, progress: Progress) -> dict | None:
    """The child's last line; None if it ended without a result."""
    answer = None
    for line in child.stdout or ():
        message = json.loads(line)
        if "phase" in message:
            progress(message["phase"], message["done"])
        else:
            answer = message
    return answer


def _abrupt_end(job: PlanJob, status: int, errors: str) -> str:
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
    # an exception in a plugin, as TensorRT's bindings print it
    raised = [line for line in lines if line.startswith("[ERROR] Exception")]
    hint = "try --no-plugin" if job.kernels else "report it to NVIDIA"
    return (
        f"{job.flavour} crashed while it built {job.plan.name} ({how}: "
        f"{(raised or lines[-1:])[0]}): {hint}"
    )


def main(arguments: list[str]) -> int:
    """The child process: prints one JSON document per line on stdout, the result last. All other
    output goes to stderr."""
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # TensorRT's own prints

    def send(**message: Any) -> None:
        print(json.dumps(message), file=stdout, flush=True)

    try:
        built = build(
            PlanJob.model_validate_json(arguments[0]),
            lambda phase, done: send(phase=phase, done=done),
        )
    except VicortError as error:
        send(error=str(error))
        return error.exit_code
    send(built=built.model_dump())
    return 0


def build(job: PlanJob, progress: Progress) -> BuiltPlan:
    """Build a plan in this process."""
    tensorrt = load_tensorrt(job.flavour)
    tensorrt.logger.errors.clear()  # of other plans
    tensorrt.logger.echo = sys.stderr  # in case this process crashes
    with _plugins(tensorrt, job) as host:
        builder = _builder(tensorrt)
        network = builder.create_network(_network_flags(tensorrt))
        parser = _parse(tensorrt, network, job, host)  # owns the weights of the network
        layer_types = Counter(
            network.get_layer(index).type.name for index in range(network.num_layers)
        )
        check_tensors(
            f"{job.model.name}, as {job.flavour} parsed it,", job.graph, *_network_tensors(network)
        )
        listed = _serialise(tensorrt, builder, network, job, host, progress)
        del parser
    plugins = layer_types.get("PLUGIN_V3", 0)
    _check_listing(job, listed, plugins)
    return BuiltPlan(layer_types=dict(sorted(layer_types.items())), plugin_layers=plugins)


def _plugins(tensorrt: TensorRT, job: PlanJob) -> AbstractContextManager[PluginHost | None]:
    return tensorrt.plugins(Kernels.read(job.kernels)) if job.kernels else nullcontext()


def _builder(tensorrt: TensorRT) -> Any:
    try:
        return tensorrt.module.Builder(tensorrt.logger)
    except TypeError as error:  # raised by the bindings if there is no builder
        reason = tensorrt.logger.reason()
        raise EngineError(
            f"{tensorrt.flavour} {tensorrt.version} has no builder here ({reason}): the full "
            "TensorRT builds only on a machine with a GPU, "
            f"`pip install {PIP_NAMES['tensorrt_rtx']}` builds anywhere"
        ) from error


def _network_flags(tensorrt: TensorRT) -> int:
    """Strongly typed: a flag in TensorRT 10, always so in TensorRT 11 and TensorRT for RTX."""
    if tensorrt.flavour == "tensorrt" and tensorrt.version.startswith("10."):
        return 1 << int(tensorrt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _parse(tensorrt: TensorRT, network: Any, job: PlanJob, host: PluginHost | None) -> Any:
    parser = tensorrt.module.OnnxParser(network, tensorrt.logger)
    if parser.parse_from_file(str(job.model)):
        _raise_kept(host)
        return parser
    _raise_kept(host)
    name = f"{tensorrt.flavour} {tensorrt.version}"
    error = parser.get_error(0) if parser.num_errors else None
    if error is None or not error.node_name():  # the error is of the file or of a weight
        raise EngineError(f"{name} cannot parse {job.model.name}: {tensorrt.logger.reason()}")
    node = f"node {error.node_name()} ({error.node_operator()})"
    raise EngineError(
        f"{name} cannot parse {node} of {job.model.name}: {' '.join(error.desc().split())}"
    )


def _raise_kept(host: PluginHost | None) -> None:
    """Raise the exception of a plugin: TensorRT may drop it, and build a wrong plan."""
    failure = host.take_failure() if host else None
    if failure:
        raise (
            failure
            if isinstance(failure, VicortError)
            else EngineError(f"the plugin failed: {failure!r}")
        ) from failure


def _serialise(
    tensorrt: TensorRT,
    builder: Any,
    network: Any,
    job: PlanJob,
    host: PluginHost | None,
    progress: Progress,
) -> list[str]:
    """Build and write the plan. Returns TensorRT's listing of its layers and tensors, if there is
    one."""
    config = builder.create_builder_config()
    _configure(tensorrt, config, job)
    profile = builder.create_optimization_profile()
    for spec in job.graph.inputs:
        if not all(isinstance(size, int) for size in spec.shape):
            profile.set_shape(
                spec.name,
                *(profile_shape(job.graph, spec, bound) for bound in ("min", "opt", "max")),
            )
    if job.graph.dimensions and config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"{tensorrt.flavour} rejects the shapes of {job.graph.file}: {tensorrt.logger.reason()}"
        )
    config.progress_monitor = monitor = progress_monitor(tensorrt, progress)
    listed: list[str] = []
    tensorrt.logger.listener = lambda message: (
        listed.append(message) if "I/O Tensors:" in message else None
    )
    with _timing_cache(tensorrt, config):
        plan = builder.build_serialized_network(network, config)
    tensorrt.logger.listener = None
    _raise_kept(host)
    if plan is None:
        raise EngineError(
            f"{tensorrt.flavour} {tensorrt.version} cannot build {job.graph.file}: "
            f"{tensorrt.logger.reason()}"
        )
    del monitor
    with job.plan.open("wb") as file:
        file.write(plan)
    return listed


def _configure(tensorrt: TensorRT, config: Any, job: PlanJob) -> None:
    flags = tensorrt.module.BuilderFlag
    config.clear_flag(flags.TF32)  # fp32 means fp32
    # an inspector can then list the layers
    config.profiling_verbosity = tensorrt.module.ProfilingVerbosity.DETAILED
    # an engine uses only the stream it is given, with its priority
    config.max_aux_streams = 0
    if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)  # required for CUDA graph capture
    if job.strip:
        config.set_flag(flags.STRIP_PLAN)
        config.set_flag(flags.REFIT_IDENTICAL)
    if job.targets:
        _set_targets(tensorrt, config, job.targets)


def _set_targets(tensorrt: TensorRT, config: Any, targets: tuple[str, ...]) -> None:
    known = check_targets(tensorrt, targets)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(known[target], index):
            raise EngineError(f"--target {target} is rejected: {tensorrt.logger.reason()}")


def check_targets(tensorrt: TensorRT, targets: tuple[str, ...]) -> dict[str, Any]:
    """TensorRT's values of the GPUs that it can build for, by name. Raises ConfigError if one of
    `targets` is not among them."""
    capabilities = getattr(tensorrt.module, "ComputeCapability", None)
    if targets and capabilities is None:
        raise ConfigError(
            f"--target {','.join(targets)}: {tensorrt.flavour} builds for the GPU that it runs "
            "on: leave --target out"
        )
    members = capabilities.__members__ if capabilities else {}
    known = {
        f"sm_{name.removeprefix('SM')}": value
        for name, value in members.items()
        if name.startswith("SM")
    }
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"--target {target} is not allowed: {tensorrt.flavour} {tensorrt.version} takes "
                f"{', '.join(known)}"
            )
    return known


def kernel_architectures(flavour: Flavour, targets: tuple[str, ...]) -> tuple[int, ...]:
    """What the kernels of a set are compiled for: the named targets; without, this machine's GPU
    if the plans run on no other, as those of the full TensorRT. Raises ConfigError if kernels
    cannot be compiled for it."""
    capability = None if targets or flavour != "tensorrt" else gpu_capability()
    if capability is None:
        return of_targets(targets)
    found = fitting_architecture(ARCHITECTURES, capability)
    if found is None:
        raise ConfigError(
            f"this GPU is sm_{capability[0]}{capability[1]}, attention kernels are compiled for "
            f"{', '.join(f'sm_{each}' for each in ARCHITECTURES)}: build with --no-plugin"
        )
    return (found,)


def check_number_formats(
    targets: tuple[str, ...], precision: Precision | None, weights: Weights | None
) -> None:
    """Raises ConfigError if one of `targets` cannot multiply in a format of the set. Without
    targets, TensorRT for RTX builds for those GPUs that can. precision: None = bf16."""
    formats: tuple[str | None, ...] = (precision or "bf16", weights)
    for target in targets:
        for name in formats:
            least = LEAST_TARGETS.get(name or "", 0)
            if int(target.removeprefix("sm_")) < least:
                option = "--weights" if name == weights else "--precision"
                raise ConfigError(
                    f"--target {target}: TensorRT for RTX does not multiply {name} there, name "
                    f"sm_{least} or newer, or take another {option}"
                )


def profile_shape(graph: GraphSpec, spec: TensorSpec, bound: str) -> tuple[int, ...]:
    """A tensor's shape in the profile. bound: "min", "opt" or "max"."""
    return tuple(
        size if isinstance(size, int) else getattr(graph.dimensions[size], bound)
        for size in spec.shape
    )


def _network_tensors(network: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return [tensor_spec(t.name, t.dtype, t.shape) for t in inputs], [
        tensor_spec(t.name, t.dtype, t.shape) for t in outputs
    ]


def progress_monitor(tensorrt: TensorRT, progress: Progress) -> Any:
    """A progress monitor that calls `progress` for every hundredth of the plan."""

    base: Any = tensorrt.module.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            # name, steps done, steps; each phase is one step of the one before it
            self.phases: list[list] = []
            self.reported = -1

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.append([name, 0, max(steps, 1)])

        def phase_finish(self, name: str) -> None:
            self.phases = [phase for phase in self.phases if phase[0] != name]

        def step_complete(self, name: str, step: int) -> bool:
            for phase in self.phases:
                if phase[0] == name:
                    phase[1] = step + 1
            done = 0.0
            for _, step_done, steps in reversed(self.phases):
                done = min(1.0, (step_done + done) / steps)
            if int(100 * done) > self.reported:
                self.reported = int(100 * done)
                progress(name, done)
            return True

    return Monitor()


@contextmanager
def _timing_cache(tensorrt: TensorRT, config: Any) -> Iterator[None]:
    """What TensorRT measured in earlier builds, in the user's cache folder. TensorRT for RTX
    measures nothing, and needs none."""
    if tensorrt.flavour == "tensorrt_rtx":
        yield
        return
    name = f"timing-{tensorrt.flavour}-{tensorrt.version}.cache"
    try:
        path = user_cache() / "vicort" / name
    except ConfigError as error:
        logger.info("what TensorRT measures is not kept: %s", error)
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        known = path.read_bytes() if path.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            # of another GPU: begin anew
            config.set_timing_cache(config.create_timing_cache(b""), False)
        yield
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, bytes(config.get_timing_cache().serialize()))
        except (OSError, ConfigError) as error:  # the next build measures again
            logger.info("what TensorRT measured is not kept: %s", error)


def _check_listing(job: PlanJob, listed: list[str], plugins: int) -> None:
    """Compare the built plan's own listing, which TensorRT for RTX writes into its log, with the
    manifest. No GPU is needed for that."""
    for text in listed:
        check_tensors(job.plan.name, job.graph, *listed_tensors(text))
        custom = text.count("LayerType: custom_layer")
        if custom != plugins:
            raise EngineError(
                f"{job.plan.name} has {custom} plugin layers, its network had {plugins}"
            )


def listed_tensors(text: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs in a plan's listing."""
    sides: dict[str, list[TensorSpec]] = {"Input": [], "Output": []}
    for line in text.partition("I/O Tensors:")[2].splitlines():
        facts = dict(part.strip().split(": ", 1) for part in line.split(", ") if ": " in part)
        if "IOMode" in facts:
            shape = [int(size) for size in facts["Dimensions"].strip("[]").split(",")]
            spec = TensorSpec(
                name=facts["Name"],
                dtype=LISTED_TYPES.get(facts["DataType"], facts["DataType"]),
                shape=tuple(size if size >= 0 else "?" for size in shape),
            )
            sides[facts["IOMode"]].append(spec)
    return sides["Input"], sides["Output"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
