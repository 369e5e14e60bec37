"""An engine set on disk: graphs, tokenizer and manifest, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import onnx_ir
import torch
from torch import nn
from tqdm import tqdm

from vicort.export.checkpoint import checkpoint_hash
from vicort.export.graphs import (
    EMBEDDING_FILE,
    TORCH_TYPES,
    TYPE_NAMES,
    expand,
    export_graph,
    signatures,
    weight_bytes,
    write_graph,
    write_nodes,
)
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_language, load_vision
from vicort.export.token_control import TokenControl
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.manifest import (
    FILE_NAME,
    Backend,
    EmbeddingSpec,
    GraphName,
    Manifest,
    ModelSpec,
    Precision,
    fingerprint,
    read_manifest,
)

COPIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
NEEDED = "tokenizer.json"
TOOLS = ("vicort", "torch", "onnx", "onnxscript", "onnx-ir")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")

Say = Callable[[str], None]


def plan(checkpoint: Path, model: ModelSpec, backend: Backend, precision: Precision, command: str) -> Manifest:
    """The manifest that a build is going to have, but for its files. Raises EngineError if the checkpoint has no tokenizer."""
    if not (checkpoint / NEEDED).is_file():
        raise EngineError(f"{checkpoint} has no {NEEDED}, so nothing could be asked: download the checkpoint again")
    return Manifest(
        backend=backend,
        precision=precision,
        model=model,
        graphs=signatures(model, precision),
        embedding=EmbeddingSpec(file=EMBEDDING_FILE, offset=0, dtype=TYPE_NAMES[precision], rows=model.vocabulary, width=model.width),
        checkpoint=checkpoint_hash(checkpoint),
        target=cpu(),
        versions={tool: version(tool) for tool in (*TOOLS, backend)} | {"exporter": exporter_hash()},
        build_command=command,
    )


def is_built(folder: Path, manifest: Manifest) -> bool:
    """Whether `folder` holds, undamaged, what a build of `manifest` would give."""
    try:
        found = read_manifest(folder)
    except EngineError:
        return False
    same = {"backend", "precision", "model", "graphs", "embedding", "checkpoint", "versions"}
    return found.model_dump(include=same) == manifest.model_dump(include=same)


def write_engine_set(folder: Path, checkpoint: Path, manifest: Manifest, say: Say) -> None:
    """Export the three graphs into `folder`, with everything else that the runtime needs, and the manifest last."""
    model, dtype = manifest.model, TORCH_TYPES[manifest.precision]
    config = read_configuration(checkpoint)
    parts: dict[GraphName, Callable[[], nn.Module]] = {
        "llm": lambda: load_language(checkpoint, config, dtype),
        "vision": lambda: load_vision(checkpoint, config, model.image_height, model.image_width, dtype),
        "tokens": lambda: TokenControl().eval(),
    }
    for name, load in parts.items():
        say(f"exporting the {name} graph")
        graph = manifest.graphs[name]
        exported, attentions = export_graph(load(), graph)
        _write(exported, folder / f"{name}.onnx")
        if attentions != graph.attention_layers:
            raise EngineError(f"the {name} graph has {attentions} attention layers, {graph.attention_layers} were expected")
        if attentions:
            expand(exported)
            write_nodes(exported, folder / graph.file)
    for file in COPIED:
        if (checkpoint / file).is_file():
            shutil.copyfile(checkpoint / file, folder / file)
    seal(folder, manifest)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with the fingerprints of all other files."""
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir()) if path.name != FILE_NAME}
    manifest.model_copy(update={"files": files}).write(folder)


@contextmanager
def building(root: Path) -> Iterator[Path]:
    """A temporary folder in `root`, gone afterwards if it was not moved away."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f".building-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError if `folder` holds anything but an engine set."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / FILE_NAME).is_file()):
        raise ConfigError(f"--out {folder} is no engine set, and is not overwritten: name a new folder, or remove it")


def publish(built: Path, folder: Path) -> None:
    """Put a whole engine set in its place; one that was there before goes. Both lie in one file system."""
    check_replaceable(folder)
    old = built.with_name(f"{built.name}-replaced")
    if folder.exists():
        folder.rename(old)
    built.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def exporter_hash() -> str:
    """Of the code that makes graphs: a change of it is a change of what it builds, whatever the version says."""
    room = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*room.glob("*.py"), *room.glob("qwen2_5_vl/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cpu() -> str:
    """The processor's architecture, and the instruction sets that matter to engines, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return " ".join([platform.machine(), *(feature for feature in CPU_FEATURES if feature in flags)])


def _write(exported: onnx_ir.Model, path: Path) -> None:
    bar = tqdm(total=weight_bytes(exported), unit="B", unit_scale=True, desc=path.name, leave=False, disable=not sys.stderr.isatty())
    with bar, torch.no_grad():
        for size in write_graph(exported, path):
            bar.update(size)
