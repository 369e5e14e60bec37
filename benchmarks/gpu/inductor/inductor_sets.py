"""Engine sets of AOTInductor, for GPUs on which TensorRT does not run.

The graphs are compiled from the programs of torch.export that the ONNX files are made of, for the
machine that this runs on. The tests build, run and compare it on a CPU. On a GPU it has not run
yet. Such a set has no pruned vision graph, and all layers and heads share one table.

    <folder>/vision.pt2, tokens.pt2, llm.pt2    code; the weights are read from the checkpoint
    <folder>/embedding.bin, kernels.zip, …      as in every other set; kernels.zip for a GPU only
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vicort.benchmarks.common.workload import CHUNK_FRAMES
from vicort.benchmarks.gpu import cuda_toolkit
from vicort.benchmarks.gpu.inductor.inductor_attention import (
    KernelTile,
    KernelTiles,
    in_pytorch,
    prepare,
    with_kernel,
)
from vicort.benchmarks.gpu.inductor.inductor_engine import Constants, InductorEngine, OnGpu, OnHost
from vicort.benchmarks.gpu.lab import Lab, Skip, fitting_architecture
from vicort.export.checkpoint import checkpoint_hash
from vicort.export.engine_set_writer import COPIED, cpu, seal
from vicort.export.exporter_version import exporter_hash
from vicort.export.graphs import EMBEDDING_FILE, TORCH_TYPES, TYPE_NAMES, export_program, signatures
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import OutputHead
from vicort.export.qwen2_5_vl.vision import fuse_attention
from vicort.export.qwen2_5_vl.weights import load_language, load_vision_of
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.tiny.model import CHECKPOINT as TINY
from vicort.export.token_control import TokenControlGraph
from vicort.runtime.devices.cuda import CudaDevice, Gpu, open_gpu
from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.devices.device import Device
from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_set import LLM_STREAMS, EngineSet
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.kernels import FILE_NAME as KERNELS_FILE
from vicort.runtime.kernels import Form, KernelName, Kernels
from vicort.runtime.manifest import (
    FILE_NAME,
    EmbeddingSpec,
    GraphName,
    GraphSpec,
    Manifest,
    ModelSpec,
    Precision,
    fingerprint,
)
from vicort.runtime.set_folders import publish

# in the order in which they are compiled: the quickest first
GRAPHS: tuple[GraphName, ...] = ("tokens", "head", "vision", "llm")
# dimensions that are 1 here
SHARED = ("S", "where_layers", "where_heads", "table_layers", "table_heads")
PART = ".part"  # what the folder of an unfinished build is called
PLAN = "plan.json"  # in it: what is being built
COMMAND = "python -m vicort.benchmarks.gpu.check --only inductor"
REBUILD = f"remove the folder, and rebuild with `{COMMAND}`"
OPTIONS: dict[str, Any] = {"aot_inductor.package_constants_in_so": False}
# Of vision. Not cuDNN's: it plans anew for each shape on each thread, at the first run.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
KERNEL_NAMES = ("bounded_attention", "rotate_tokens", "rotated_attention", "combine")
EMBEDDING = "embed_tokens.weight"

Say = Callable[[str], None]


class InductorManifest(Manifest):
    """The manifest of a set that only the benchmarks can open."""

    backend: Literal["inductor"] = "inductor"  # type: ignore[assignment]  # not among those that the runtime knows
    source: Path  # the checkpoint, which holds the weights


# ---- building


def plan(
    checkpoint: Path, model: ModelSpec, precision: Precision, gpu: Gpu | None
) -> InductorManifest:
    """The manifest of a build, without its files."""
    graphs = signatures(model, precision)
    return InductorManifest(
        source=checkpoint.resolve(),
        precision=precision,
        model=model,
        graphs={name: _package_of(name, graphs[name]) for name in GRAPHS},
        embedding=EmbeddingSpec(
            file=EMBEDDING_FILE,
            offset=0,
            dtype=TYPE_NAMES[precision],
            rows=model.vocabulary,
            width=model.width,
        ),
        checkpoint=checkpoint_hash(checkpoint),
        target=f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}" if gpu else cpu(),
        versions={"torch": torch.__version__, "exporter": exporter_hash(), "packages": _own_hash()},
        build_command=COMMAND,
    )


def _package_of(name: GraphName, graph: GraphSpec) -> GraphSpec:
    """A graph's signature as a package has it."""
    inputs = tuple(
        spec.model_copy(
            update={"shape": tuple(1 if size in SHARED else size for size in spec.shape)}
        )
        for spec in graph.inputs
    )
    dimensions = {size: bounds for size, bounds in graph.dimensions.items() if size not in SHARED}
    return graph.model_copy(
        update={"file": f"{name}.pt2", "inputs": inputs, "dimensions": dimensions}
    )


def build(
    folder: Path,
    checkpoint: Path,
    model: ModelSpec,
    precision: Precision,
    gpu: Gpu | None = None,
    *,
    shared: Path | None = None,
    say: Say = lambda line: None,
) -> dict[str, float]:
    """Builds the set, for `gpu` or for this CPU, unless it exists; returns the seconds for each
    part, 0.0 if it existed.

    An interrupted build resumes: a package is kept as soon as it is complete. shared: a set whose
    packages of equal graphs are reused.
    """
    wanted = plan(checkpoint, model, precision, gpu)
    if is_built(folder, wanted):
        return dict.fromkeys(GRAPHS, 0.0)
    part = folder.with_name(folder.name + PART)
    _begin(part, wanted)
    seconds: dict[str, float] = {}
    tiles = _kernels(part, checkpoint, wanted, gpu) if gpu else None
    for name in GRAPHS:
        start = time.perf_counter()
        if not (part / wanted.graphs[name].file).is_file() and not _taken(
            part, wanted, name, shared
        ):
            say(f"compiling {wanted.graphs[name].file}")
            _compile(part, wanted, name, tiles)
        seconds[name] = round(time.perf_counter() - start, 1)
    _copy_texts(part, checkpoint)
    (part / PLAN).unlink()
    seal(part, wanted)
    publish(part, folder)
    return seconds


def is_built(folder: Path, wanted: InductorManifest) -> bool:
    try:
        return read(folder).model_copy(update={"files": {}}) == wanted
    except EngineError:
        return False


def _begin(part: Path, wanted: InductorManifest) -> None:
    """Keeps the files of an earlier build of the same plan, or empties the folder."""
    text = wanted.model_dump_json()
    if not ((part / PLAN).is_file() and (part / PLAN).read_text() == text):
        if part.is_dir() and any(part.iterdir()) and not (part / PLAN).is_file():
            raise ConfigError(f"{part} was not made by this build: move it away, or remove it")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / PLAN).write_text(text)


def _taken(part: Path, wanted: InductorManifest, name: GraphName, shared: Path | None) -> bool:
    """Link a package of another set, if that is of the same graph, weights and tools."""
    if shared is None:
        return False
    other, file = read(shared), wanted.graphs[name].file
    same = all(
        getattr(other, key) == getattr(wanted, key)
        for key in ("checkpoint", "versions", "target", "precision")
    )
    # The vision graph is made for one size of frames, which is in its signature.
    if not (same and other.graphs[name] == wanted.graphs[name]):
        return False
    if name == "llm":
        (part / EMBEDDING_FILE).unlink(missing_ok=True)  # of a build that was broken off here
        os.link(shared / EMBEDDING_FILE, part / EMBEDDING_FILE)
    os.link(shared / file, part / file)
    return True


def _compile(
    part: Path, wanted: InductorManifest, name: GraphName, tiles: KernelTiles | None
) -> None:
    """tiles: of the kernels on a GPU; None = for this CPU."""
    graph, device = wanted.graphs[name], "cuda" if tiles else "cpu"
    module = load_module(wanted, name, device)
    with _quiet(), torch.no_grad(), sdpa_kernel(ATTENTION):
        program, _ = export_program(module, graph, device)
        if graph.attention_layers:
            program = with_kernel(program, tiles) if tiles else in_pytorch(program)
        # beside its target, so that moving costs nothing
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{name}-") as folder:
            package = Path(folder) / graph.file
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=OPTIONS
            )
            if name == "llm":
                _write_embedding(module, part / EMBEDDING_FILE)
            package.rename(part / graph.file)


def load_module(manifest: InductorManifest, name: GraphName, device: str) -> nn.Module:
    """The module of a graph, with the weights of the set's checkpoint, on a device."""
    config = read_configuration(manifest.source)
    model = manifest.model
    dtype = TORCH_TYPES[manifest.precision]
    if name == "tokens":
        return TokenControlGraph().eval()
    if name == "vision":
        vision = load_vision_of(manifest.source, config, model.fixed_size, dtype)
        combine(vision, copies=True)
        fuse_attention(vision)  # PyTorch has kernels for it, which it does not look for itself
        return vision.to(device)
    language = load_language(manifest.source, config, dtype)
    if name == "head":
        return OutputHead(language).to(device)
    combine(language, copies=True)
    if device != "cpu":
        prepare(language, config.language.theta, config.language.sections)
    return language.to(device)


def _write_embedding(language: nn.Module, path: Path) -> None:
    rows = language.get_parameter(EMBEDDING).detach().cpu().contiguous()
    rows.view(torch.uint8).numpy().tofile(path)


def _kernels(part: Path, checkpoint: Path, wanted: InductorManifest, gpu: Gpu) -> KernelTiles:
    """Write kernels.zip for this GPU, if it is not there; returns the tiles of its attention
    kernels for many queries."""
    from vicort.export.kernels.compile import compile_kernels, kernel_spec

    spec = kernel_spec(
        read_configuration(checkpoint).language, wanted.model.page_tokens, wanted.precision
    )
    architecture, path = fitting_architecture(gpu), part / KERNELS_FILE
    if not path.is_file():
        path.write_bytes(compile_kernels(spec, (architecture,)))
    kernels = Kernels.read(path)
    return KernelTiles(
        _tile(kernels, architecture, "bounded_attention", "wide"),
        _tile(kernels, architecture, "rotated_attention", ""),
        gpu.multiprocessors,
    )


def _tile(kernels: Kernels, architecture: int, kernel: KernelName, form: Form) -> KernelTile:
    """The tile that was taken: the first that fits and does not spill."""
    from vicort.export.kernels.compile import plan_tasks

    compiled = kernels.find(architecture, kernel, form)
    blocks = int(compiled.constants["BLOCK_M"]), int(compiled.constants["BLOCK_N"])
    tiles = next(
        task.tiles
        for task in plan_tasks(kernels.spec, architecture)
        if (task.kernel, task.form) == (kernel, form)
    )
    chosen = next(tile for tile in tiles if (tile.blocks, tile.warps) == (blocks, compiled.warps))
    return KernelTile(*blocks, chosen.warps, chosen.stages)


def _copy_texts(part: Path, checkpoint: Path) -> None:
    for file in COPIED:
        if (checkpoint / file).is_file():
            shutil.copyfile(checkpoint / file, part / file)


def _own_hash() -> str:
    """Of the code that makes packages."""
    files = [Path(__file__).parent / name for name in ("inductor_sets.py", "inductor_attention.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses PyTorch's warnings; errors are exceptions."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def kernel_names(folder: Path) -> dict[str, int]:
    """How often the language package names the Triton kernels."""
    with zipfile.ZipFile(folder / "llm.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    return {name: content.count(name.encode()) for name in KERNEL_NAMES}


# ---- opening


def read(folder: Path) -> InductorManifest:
    """Raises EngineError if the folder holds no such set, or not what its manifest says."""
    try:
        manifest = InductorManifest.model_validate_json((folder / FILE_NAME).read_text())
        found = {name: fingerprint(folder / name) for name in manifest.files}
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{folder} is no engine set of AOTInductor ({' '.join(str(error).split())[:200]}): "
            f"{REBUILD}"
        ) from error
    for name, file in manifest.files.items():
        if found[name] != file:
            raise EngineError(
                f"{folder / name} is damaged ({found[name].bytes} bytes, {file.bytes} were "
                f"built): {REBUILD}"
            )
    return manifest


def open_engines(folder: Path) -> EngineSet:
    """Load a set onto the device that it was built for.

    Raises EngineError if it is missing, damaged, or its checkpoint is another than it was;
    DeviceError if there is no GPU.
    """
    manifest = read(folder)
    if checkpoint_hash(manifest.source) != manifest.checkpoint:
        raise EngineError(
            f"{manifest.source} is not the checkpoint that {folder} was built from: remove that "
            "folder, and build it again"
        )
    backend = InductorBackend(
        folder, manifest, open_gpu() if (folder / KERNELS_FILE).is_file() else None
    )
    engines: dict[GraphName, Engine] = {
        name: backend.load(folder / graph.file, graph, streams=LLM_STREAMS)
        for name, graph in manifest.graphs.items()
    }
    return EngineSet(folder, manifest, engines, backend)


class InductorBackend:
    """The device of one set: a GPU, or the host."""

    loading_threads = 1

    def __init__(self, folder: Path, manifest: InductorManifest, gpu: Gpu | None) -> None:
        self._manifest, self._gpu = manifest, gpu
        self._side = OnGpu() if gpu else OnHost()
        self._kernels = None
        if gpu:
            kernels = Kernels.read(folder / KERNELS_FILE)
            self._kernels = LoadedKernels(
                kernels,
                capability=gpu.capability,
                multiprocessors=gpu.multiprocessors,
                launcher=gpu.launcher,
            )

    def load(self, path: Path, graph: GraphSpec, *, streams: int) -> InductorEngine:
        name = next(name for name, each in self._manifest.graphs.items() if each.file == graph.file)
        return InductorEngine(
            path, graph, constants(load_module(self._manifest, name, self._side.device)), self._side
        )

    def new_device(self, overlap: bool) -> Device:
        if self._gpu and self._kernels:
            return CudaDevice(self._gpu, self._kernels, threads=overlap)
        return HostDevice(threads=overlap)

    def memory(self) -> MachineMemory:
        return self._gpu.machine_memory() if self._gpu else MachineMemory(host_memory())


def constants(module: nn.Module) -> Constants:
    """Parameters and buffers by all their names."""
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach() for name, tensor in named}


def tiny_engines(folder: Path, precision: str, gpu: Gpu | None) -> EngineSet:
    """The tiny model's set, built if it is not there yet. gpu: None = for this CPU. Raises Skip if
    PyTorch cannot use the GPU."""
    if gpu:
        need_cuda()
    recipe = load_recipe("tiny", chunk_frames=CHUNK_FRAMES, precision=precision)
    model = model_spec("tiny", read_configuration(TINY), recipe)
    build(folder, TINY, model, recipe.precision or "fp32", gpu)
    return open_engines(folder)


class InductorMaker:
    """Sets of any model, for the steps that measure real sizes."""

    def build(
        self, lab: Lab, size: Any, checkpoint: Path, folder: Path, side: int, shared: Path | None
    ) -> dict[str, Any]:
        """size: a `vicort.benchmarks.gpu.real_models.Size`; side: pixels of a frame's side; shared:
        as `build` takes it.

        Returns the seconds of each package.
        """
        need_cuda()
        recipe = load_recipe(
            size.recipe, image_width=side, image_height=side, question_rows=size.max_question_rows
        )
        model = model_spec(size.name, read_configuration(checkpoint), recipe)
        return {"package_seconds": build(folder, checkpoint, model, "bf16", lab.gpu, shared=shared)}

    def open(self, folder: Path) -> EngineSet:
        return open_engines(folder)


def need_cuda() -> None:
    """Raises Skip if PyTorch cannot use the GPU, or has no CUDA to compile against."""
    from torch.utils.cpp_extension import CUDA_HOME  # late: it looks for a compiler

    if not torch.cuda.is_available():
        raise Skip(
            f"PyTorch {torch.__version__} cannot use this GPU, for which AOTInductor would "
            "compile: install it with CUDA"
        )
    if CUDA_HOME is None or not Path(CUDA_HOME, cuda_toolkit.HEADER).is_file():
        raise Skip(cuda_toolkit.missing())
