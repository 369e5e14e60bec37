"""Engine sets for tests of the builder and of engines, built once in a test run.

In the default run they are the embedded model's, which other tests need too. Where slow tests run
they are those of a random checkpoint: other sizes, frames that are not square, odd token counts.
"""

from __future__ import annotations

import functools
import json
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import onnx_ir
import torch
from support.reference_model import write_random_checkpoint
from support.shared import once
from support.sizes import is_thorough
from support.tiny_sets import tiny_set
from torch import nn

from vicort.export import build, build_set, engine_set_writer
from vicort.export.checkpoint import TINY
from vicort.export.engine_set_writer import draft_manifest, seal
from vicort.export.graphs import export_graph
from vicort.export.qwen2_5_vl.layers import JoinedLinear
from vicort.export.recipe import load_recipe
from vicort.runtime.manifest import Backend, GraphSpec, Manifest, read_manifest

TOKENIZER = Path(__file__).parents[2] / "export" / "tiny" / "checkpoint" / "tokenizer.json"
# 6 visual tokens a unit, 2 units a chunk
OPTIONS = ("--image-size", "56x84", "--chunk-frames", "4")
# two layers: export takes a time that grows with them, and the embedded model has four
VISION = {"depth": 2, "fullatt_block_indexes": [1]}
TEXT = {"num_hidden_layers": 2}
BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")


@functools.cache
def checkpoint(name: str = "checkpoint") -> Path:
    """A random one of two layers, in a folder of that name."""

    def write(folder: Path) -> None:
        folder.mkdir()
        write_random_checkpoint(folder, "tiny", seed=3, vision=VISION, text=TEXT)
        shutil.copy(TOKENIZER, folder)

    return once(name, write)


def built_model() -> str:
    """The MODEL argument with which `chosen_set` is built."""
    return str(checkpoint()) if is_thorough() else TINY


def built_options() -> tuple[str, ...]:
    return OPTIONS if is_thorough() else ()


@functools.cache
def chosen_set() -> Path:
    """What `vicort-build` makes when the backend is left to it."""

    def make(folder: Path) -> None:
        assert build.main([built_model(), "--out", str(folder), *built_options()]) == 0

    return once("chosen", make) if is_thorough() else tiny_set()


@functools.cache
def engine_set(backend: Backend) -> Path:
    """The same files, for one backend or the other."""
    if not is_thorough():
        return tiny_set(backend)
    command = f"vicort-build {checkpoint()} --backend {backend}"
    return once(
        f"random-{backend}",
        lambda folder: copy_for(backend, chosen_set(), folder, checkpoint(), command),
    )


ANY_SIZE_PIXELS = 20_000  # 25 visual tokens


@functools.cache
def talking_checkpoint() -> Path:
    """A random checkpoint with a chat template, so that it can be asked. Its language model has the
    embedded model's shape."""

    def write(folder: Path) -> None:
        folder.mkdir()
        embedded = json.loads((TOKENIZER.parent / "config.json").read_text())["text_config"]
        text = {key: embedded[key] for key in ("num_hidden_layers", "intermediate_size")}
        write_random_checkpoint(folder, "tiny", seed=3, vision=VISION, text=text)
        for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
            shutil.copy(TOKENIZER.parent / name, folder)

    return once("talking-checkpoint", write)


@functools.cache
def any_size_set(backend: Backend) -> Path:
    """Of the talking checkpoint, with frames in the shape of the source, verified. Its language
    graphs are traced again only where slow tests run: pages are the embedded model's, whose graph
    has their size."""
    source = talking_checkpoint()
    command = [str(source), "--backend", "openvino", "--verify", "--chunk-frames", "8"]
    command += ["--max-pixels", str(ANY_SIZE_PIXELS), "--out"]

    def graph(module: nn.Module, signature: GraphSpec, **options) -> tuple[onnx_ir.Model, int]:
        if signature.attention_layers or signature.file == "head.onnx":
            return graph_of(tiny_set(), module, signature, **options)
        return export_graph(module, signature, **options)

    def make(folder: Path) -> None:
        torch.set_num_threads(1)
        if is_thorough():
            assert build.main([*command, str(folder)]) == 0
            return
        pages = read_manifest(tiny_set()).model.page_tokens
        with (
            mock.patch.object(build_set, "load_recipe", partial(load_recipe, page_tokens=pages)),
            mock.patch.object(engine_set_writer, "export_graph", graph),
        ):
            assert build.main([*command, str(folder)]) == 0

    built = once("any-size-openvino", make)
    if backend == "openvino":
        return built
    return once(
        f"any-size-{backend}",
        lambda folder: copy_for(backend, built, folder, source, "vicort-build"),
    )


@functools.cache
def live_set() -> Path:
    """The embedded model with the adapter that it comes with, built without tracing it again."""

    def make(folder: Path) -> None:
        torch.set_num_threads(1)
        traced = partial(graph_of, tiny_set())
        with mock.patch.object(engine_set_writer, "export_graph", traced):
            assert build.main(["tiny-live", "--backend", "openvino", "--out", str(folder)]) == 0

    return once("tiny-live", make)


def graph_of(
    folder: Path, module: nn.Module, graph: GraphSpec, keep_weights: bool = False
) -> tuple[onnx_ir.Model, int]:
    """What `export_graph` gives for a module: the graph of another set of the same structure, with
    the language weights of the module."""
    name = "llm" if graph.attention_layers else Path(graph.file).stem
    model = onnx_ir.load(folder / f"{name}.onnx")
    if name in ("llm", "head"):
        weights = {
            name: weight for name, weight in module.named_parameters() if ".weights." not in name
        } | {
            f"{name}.weight": layer.weight
            for name, layer in module.named_modules()
            if isinstance(layer, JoinedLinear)
        }
        if name == "llm":  # which has neither the embedding nor the head
            weights = {key: weights[key] for key in weights if key.startswith(("layers.", "norm."))}
        for key, weight in weights.items():
            model.graph.initializers[key].const_value = onnx_ir.tensor(
                weight.detach().float().numpy()
            )
    return model, graph.attention_layers


def copy_for(backend: Backend, source: Path, target: Path, checkpoint: Path, command: str) -> None:
    """A set of one CPU backend as `vicort-build` makes it for another: all run the same files."""
    shutil.copytree(source, target)
    manifest = read_manifest(target)
    seal(target, draft_manifest(checkpoint, manifest.model, backend, "fp32", command))


def damaged_copy(folder: Path, target: Path, **changes: object) -> Manifest:
    """A copy of a set whose manifest says something else; its fingerprints are right."""
    shutil.copytree(folder, target)
    manifest = Manifest.model_validate(read_manifest(folder).model_dump() | changes)
    seal(target, manifest)
    return manifest
