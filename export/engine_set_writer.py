"""Writes an engine set: graphs, tokenizer and manifest, atomically."""

from __future__ import annotations

import logging
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir
import torch
from torch import nn
from tqdm import tqdm

from vicort.export.calibration import calibrate
from vicort.export.calibration_clip import CalibrationClip
from vicort.export.checkpoint import checkpoint_hash
from vicort.export.eight_bit_calibration import calibrate_inputs
from vicort.export.exporter_version import exporter_hash
from vicort.export.graphs import (
    EMBEDDING_FILE,
    TORCH_TYPES,
    TYPE_NAMES,
    Written,
    expand,
    export_graph,
    plan_signatures,
    remove_functions,
    signatures,
    weight_bytes,
    write_embedding,
    write_graph,
    write_nodes,
)
from vicort.export.product_choice import Choices, fold_norms, write_choices
from vicort.export.qwen2_5_vl.adapter import Adapter
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import LanguageModel, OutputHead
from vicort.export.qwen2_5_vl.packed_weights import PackedWeight
from vicort.export.qwen2_5_vl.pruned_vision import pruned
from vicort.export.qwen2_5_vl.tied_head import has_tied_head
from vicort.export.qwen2_5_vl.vision import DynamicVisionEncoder, VisionEncoder, fuse_attention
from vicort.export.qwen2_5_vl.weights import (
    load_language,
    load_vision_of,
    stores_bfloat16_embedding,
)
from vicort.export.tensorrt_plans import (
    KERNELS_FILE,
    PIP_NAMES,
    PlanJob,
    Progress,
    build_plan,
    kernel_architectures,
)
from vicort.export.token_control import TokenControlGraph
from vicort.export.torch_tensorrt import compile_directly
from vicort.export.verify import write_reference
from vicort.export.weight_compression import HEADS, Quantised, Scheme, compress
from vicort.export.written_integers import written_integers
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import (
    FILE_NAME,
    KV,
    Activations,
    Backend,
    EmbeddingSpec,
    Flavour,
    GraphName,
    GraphSpec,
    Manifest,
    ModelSpec,
    Precision,
    Weights,
    fingerprint,
    read_manifest,
)
from vicort.runtime.work_folders import work_folder

logger = logging.getLogger(__name__)

COPIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "special_tokens_map.json",
)
# of a checkpoint that has no chat_template.jinja beside it
NAMED_TEMPLATE = "additional_chat_templates/default.jinja"
# graphs with weights that others have too, or that are the embedding: they are stored once
SHARING: tuple[GraphName, ...] = ("head", "vision", "vision_pruned")
# before the names of the parameters that the pruned vision graph has of the vision graph
SHARED_ENCODER = "encoder."
TOOLS = ("vicort", "torch", "onnx", "onnxscript", "onnx-ir")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")

Say = Callable[[str], None]


@dataclass(frozen=True)
class PlanOptions:
    """How a TensorRT set is built."""

    flavour: Flavour
    plugin: bool = True  # False: BoundedAttention is expanded into TensorRT layers
    # plans without weights: the runtime loads them from ONNX files in the set
    strip: bool = False
    targets: tuple[str, ...] = ()  # sm_80, …; none: TensorRT's default
    frontend: str = "onnx"  # or torch-tensorrt, for the vision graph


def draft_manifest(
    checkpoint: Path,
    model: ModelSpec,
    backend: Backend,
    precision: Precision,
    command: str,
    options: PlanOptions | None = None,
    adapter: Adapter | None = None,
    weights: Weights | None = None,
    kv: KV = "float",
    activations: Activations | None = None,
    clip: CalibrationClip | None = None,
) -> Manifest:
    """The manifest of a set before it is built: without files, layers and names in plans. options:
    of backend tensorrt. clip: that int4 weights are chosen with.
    """
    graphs, tools = signatures(model, precision, kv), [*TOOLS, backend]
    if options:
        graphs = plan_signatures(graphs, model, options.plugin, options.strip)
        tools = [*TOOLS, "triton", PIP_NAMES[options.flavour]]
    versions = {tool: version(tool) for tool in tools} | {"exporter": exporter_hash()}
    if options and options.frontend != "onnx":
        versions |= {options.frontend: version(options.frontend)}
    return Manifest(
        backend=backend,
        flavour=options.flavour if options else None,
        precision=precision,
        weights=weights,
        activations=activations,
        calibration=clip.fingerprint if clip else None,
        kv=kv,
        model=model,
        graphs=graphs,
        embedding=EmbeddingSpec(
            file=EMBEDDING_FILE,
            offset=0,
            dtype=_embedding_type(checkpoint, precision, weights, options, adapter),
            rows=model.vocabulary,
            width=model.width,
        ),
        checkpoint=checkpoint_hash(checkpoint, adapter.folder if adapter else None),
        target=plan_target(options) if options else cpu(),
        versions=versions,
        build_command=command,
    )


def _embedding_type(
    checkpoint: Path,
    precision: Precision,
    weights: Weights | None,
    options: PlanOptions | None,
    adapter: Adapter | None,
) -> str:
    """Of the numbers in embedding.bin: the set's precision where a tied output head is a part of
    the file too, else bfloat16 if the checkpoint has it so."""
    scheme = Scheme.chosen(precision, weights, options is not None, "head")
    refers = (options is None or options.strip) and (scheme is None or not scheme.int8)
    if refers and has_tied_head(checkpoint, read_configuration(checkpoint)):
        return TYPE_NAMES[precision]
    return "bfloat16" if stores_bfloat16_embedding(checkpoint, adapter) else TYPE_NAMES[precision]


def plan_target(options: PlanOptions) -> str:
    """The GPUs that plans are built for."""
    if options.targets:
        return " ".join(options.targets)
    return (
        "what TensorRT for RTX builds for by itself"
        if options.flavour == "tensorrt_rtx"
        else "the GPU that they were built on"
    )


def is_built(folder: Path, manifest: Manifest) -> bool:
    """Whether `folder` contains an undamaged set that equals a build of `manifest`."""
    try:
        found = read_manifest(folder)
    except EngineError:
        return False
    return _draft_of(found) == _draft_of(manifest)


def _draft_of(manifest: Manifest) -> dict:
    """The manifest as `draft_manifest` gave it, without the command and, for ONNX files, which run
    on every CPU, the machine."""
    known = manifest.model_dump(
        exclude={
            "build_command": True,
            "files": True,
            "graphs": {"__all__": {"layer_types", "plan_names"}},
        }
    )
    return known | ({} if manifest.flavour else {"target": None})


def write_engine_set(
    folder: Path,
    checkpoint: Path,
    manifest: Manifest,
    say: Say,
    options: PlanOptions | None = None,
    adapter: Adapter | None = None,
    clip: CalibrationClip | None = None,
) -> None:
    """Write the graphs, all other files that the runtime needs, and last the manifest.

    options: of backend tensorrt, which builds plans from ONNX files in a temporary folder. adapter:
    merged into the checkpoint's weights as they are read. clip: as of `draft_manifest`. Without the
    language graph, which may come from another set, `write_reference` is left to the caller.
    """
    calibration = calibrate if manifest.weights == "int4" else calibrate_inputs
    choices = calibration(clip, checkpoint, manifest, say, adapter) if clip else {}
    if choices:
        write_choices(choices, folder)
    if options:
        # on the target's file system, so that moving is cheap
        with tempfile.TemporaryDirectory(dir=folder, prefix="onnx-") as temporary:
            manifest = _write_plans(
                folder, Path(temporary), checkpoint, manifest, say, options, adapter, choices
            )
    else:
        exports = _exports(folder, checkpoint, manifest, say, adapter, choices=choices)
        for name, exported in exports:
            if manifest.graphs[name].attention_layers:
                expand(exported)
                write_nodes(exported, folder / manifest.graphs[name].file)
    for file in COPIED:
        if (checkpoint / file).is_file():
            shutil.copyfile(checkpoint / file, folder / file)
    if (checkpoint / NAMED_TEMPLATE).is_file() and not (folder / "chat_template.jinja").exists():
        shutil.copyfile(checkpoint / NAMED_TEMPLATE, folder / "chat_template.jinja")
    # the machine that runs plans may have neither PyTorch nor the checkpoint
    if options and "llm" in manifest.graphs:
        say("storing what the model computes, for --verify-engines")
        write_reference(folder, manifest, checkpoint, adapter)
    seal(folder, manifest)


def _exports(
    folder: Path,
    checkpoint: Path,
    manifest: Manifest,
    say: Say,
    adapter: Adapter | None,
    but: str = "",
    choices: Choices | None = None,
) -> Iterator[tuple[GraphName, onnx_ir.Model]]:
    """Yield each graph after it is written to <name>.onnx with its weights. but: a graph to leave
    out. choices: of the language model's int4 products, or of all int8 or fp8 products."""
    model, dtype = manifest.model, TORCH_TYPES[manifest.precision]
    config = read_configuration(checkpoint)
    written: Written = {}  # the embedding, and weights of graphs that share them

    schemes = {
        name: scheme and replace(scheme, choices=choices or {})
        for name in manifest.graphs
        for scheme in (Scheme.of(manifest, name),)
    }
    packed: dict[str, PackedWeight] = {}  # of a quantised checkpoint's language model
    heads: list[OutputHead] = []  # of the language model, once that is loaded
    seen: dict[str, Quantised] = {}  # the vision graph's, once that is written

    def vision() -> VisionEncoder | DynamicVisionEncoder:
        stored = schemes["vision"] is not None
        loaded = load_vision_of(checkpoint, config, model.fixed_size, dtype, adapter, stored)
        combine(loaded)
        return loaded

    def language() -> LanguageModel:
        stored, integers = schemes["llm"] is not None, packed if schemes["llm"] else None
        loaded = load_language(checkpoint, config, dtype, adapter, stored, integers)
        combine(loaded, integers)
        kind = getattr(torch, manifest.embedding.dtype)
        write_embedding(loaded.embed_tokens.weight, folder, kind, written)
        heads.append(OutputHead(loaded))
        fold_norms(loaded, choices or {})
        return loaded

    parts: dict[GraphName, Callable[[], nn.Module]] = {
        "llm": language,
        "head": heads.pop,
        "vision": vision,
        "vision_pruned": lambda: pruned(vision()),
        "tokens": lambda: TokenControlGraph().eval(),
    }
    for name, load in parts.items():
        if name == but or name not in manifest.graphs:
            continue
        say(f"exporting the {name} graph")
        began = time.perf_counter()
        graph = manifest.graphs[name]
        # the weight of a tied head is found in the embedding's file if it is as there
        keep = schemes[name] is not None or name == "head"
        exported, attentions = export_graph(load(), graph, keep_weights=keep)
        if scheme := schemes[name]:
            ready = scheme.ready(_integers_of(name, packed))
            if name == "vision_pruned":
                ready |= {
                    f"{SHARED_ENCODER}{key}": quantised
                    for key, quantised in seen.items()
                    if f"{SHARED_ENCODER}{key}" in exported.graph.initializers
                }
            counts = compress(exported, scheme, ready)
            say(f"matrices of the {name} graph: {_counted(counts)}")
        _write(exported, folder / f"{name}.onnx", written if name in SHARING else None)
        if name == "vision" and schemes[name]:
            seen = written_integers(exported.graph)
        if attentions != graph.attention_layers:
            raise EngineError(
                f"the {name} graph has {attentions} attention layers, {graph.attention_layers} "
                "were expected"
            )
        logger.info(
            "the %s graph took %.1f s, weights are %d bytes",
            name,
            time.perf_counter() - began,
            weight_bytes(exported),
        )
        yield name, exported


def _integers_of(graph: GraphName, packed: dict[str, PackedWeight]) -> dict[str, PackedWeight]:
    """Takes a graph's out of those of the language model."""
    wanted = {"llm": packed.keys() - HEADS, "head": packed.keys() & HEADS}.get(graph, set())
    return {name: packed.pop(name) for name in wanted}


def _counted(matrices: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in matrices.items())


def _write_plans(
    folder: Path,
    onnx: Path,
    checkpoint: Path,
    manifest: Manifest,
    say: Say,
    options: PlanOptions,
    adapter: Adapter | None,
    choices: Choices,
) -> Manifest:
    """Write kernels and plans into `folder`, from ONNX files in `onnx`. Returns the manifest with
    the layers of the plans."""
    graphs = dict(manifest.graphs)
    say("leaving out vision_pruned: system codecflow runs on the engines of the CPU only")
    _write_kernels(folder, checkpoint, manifest, say, options)
    direct = "vision" if options.frontend == "torch-tensorrt" else ""
    exports = _exports(onnx, checkpoint, manifest, say, adapter, direct, choices)
    for name, exported in exports:
        if graphs[name].attention_layers:
            remove_functions(exported) if options.plugin else expand(exported)
            write_nodes(exported, onnx / f"{name}.onnx")
        with progress_bar(f"building {graphs[name].file}", say) as bar:
            graphs[name] = _build(onnx / f"{name}.onnx", folder, graphs[name], options, bar)
    if direct:
        say("compiling vision.plan with torch-tensorrt")
        model, dtype = manifest.model, TORCH_TYPES[manifest.precision]
        config = read_configuration(checkpoint)
        vision = load_vision_of(checkpoint, config, model.fixed_size, dtype, adapter)
        combine(vision, copies=True)
        fuse_attention(vision)  # its converter makes one layer of this, and of nothing else
        graphs["vision"] = compile_directly(
            vision, graphs["vision"], folder / graphs["vision"].file
        )
    for file in list(onnx.iterdir()):
        if options.strip or file.name == EMBEDDING_FILE:
            file.rename(folder / file.name)
    return manifest.model_copy(update={"graphs": graphs})


def _write_kernels(
    folder: Path, checkpoint: Path, manifest: Manifest, say: Say, options: PlanOptions
) -> None:
    # late: only this backend needs Triton
    from vicort.export.kernels.compile import compile_kernels, kernel_spec

    architectures = kernel_architectures(options.flavour, options.targets)

    spec = kernel_spec(
        read_configuration(checkpoint).language,
        manifest.model.page_tokens,
        manifest.precision,
        kv=manifest.kv,
    )
    with progress_bar(f"compiling {KERNELS_FILE}", say) as bar:
        content = compile_kernels(
            spec, architectures, lambda done, total, what: bar(what, done / total)
        )
    (folder / KERNELS_FILE).write_bytes(content)


def _build(
    model: Path, folder: Path, graph: GraphSpec, options: PlanOptions, progress: Progress
) -> GraphSpec:
    """Write a plan into `folder`. Returns the graph with the layers of the plan."""
    job = PlanJob(
        model=model,
        plan=folder / graph.file,
        graph=graph,
        flavour=options.flavour,
        kernels=folder / KERNELS_FILE if graph.plugin_layers else None,
        strip=options.strip,
        targets=options.targets,
    )
    began = time.perf_counter()
    built = build_plan(job, progress)
    logger.info("%s took %.1f s", graph.file, time.perf_counter() - began)
    if built.plugin_layers != graph.plugin_layers:
        raise EngineError(
            f"{graph.file} has {built.plugin_layers} plugin layers, {graph.plugin_layers} were "
            "expected"
        )
    return graph.model_copy(update={"layer_types": built.layer_types})


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the fingerprints of all other files."""
    files = {
        path.name: fingerprint(path) for path in sorted(folder.iterdir()) if path.name != FILE_NAME
    }
    manifest.model_copy(update={"files": files}).write(folder)


@contextmanager
def building(root: Path) -> Iterator[Path]:
    """A folder for a new set in a work folder in `root`, removed afterwards unless it was moved.

    Raises ConfigError if no folder can be made in `root`.
    """
    with work_folder(root) as work:
        (work / "set").mkdir()
        yield work / "set"


def cpu() -> str:
    """The processor's architecture, and those instruction sets in /proc/cpuinfo that engines
    use."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return " ".join(
        [platform.machine(), *(feature for feature in CPU_FEATURES if feature in flags)]
    )


@contextmanager
def progress_bar(what: str, say: Say) -> Iterator[Progress]:
    """Print a line and, on a terminal, show a progress bar. Yields a function of a phase's name and
    the fraction done, 0 to 1."""
    say(what)
    with tqdm(
        total=100,
        desc=what,
        leave=False,
        disable=not sys.stderr.isatty(),
        bar_format="{desc} {percentage:3.0f}% |{bar}|",
    ) as bar:

        def show(phase: str, done: float) -> None:
            bar.set_description(phase[:40], refresh=False)
            bar.update(round(100 * done) - bar.n)

        yield show


def _write(exported: onnx_ir.Model, path: Path, written: Written | None) -> None:
    bar = tqdm(
        total=weight_bytes(exported),
        unit="B",
        unit_scale=True,
        desc=path.name,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    with bar, torch.no_grad():
        for size in write_graph(exported, path, written):
            bar.update(size)
