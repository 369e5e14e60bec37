"""Lets an engine set multiply with integers by onnxruntime's own operators."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vicort.export import int4_products, int8_products
from vicort.export.graphs import EXPANDED_FILE, Written, weight_bytes, write_graph
from vicort.export.int8_products import Arithmetic
from vicort.export.unread_weights import load_unread
from vicort.runtime.manifest import Activations, Manifest

LANGUAGE_FILES = ("llm.onnx", EXPANDED_FILE, "head.onnx")
VISION_FILES = ("vision.onnx", "vision_pruned.onnx")


def packs(manifest: Manifest) -> bool:
    """Whether the graphs of a set become those of this module before they run."""
    return manifest.backend == "onnxruntime" and manifest.weights is not None


def repack(
    folder: Path,
    activations: Activations | None = None,
    out: Path | None = None,
    progress: Callable[[str, float], object] = lambda phase, done: None,
) -> None:
    """Replace the products with integer weights in the graphs of a set. Weights are written once,
    to the file of the first graph that has them; the disk holds them twice for a while, and memory
    one product at a time.

    activations: of the vision encoder. out: a folder for the new files; None = those of the set are
    replaced. progress: called with the name of a file and the fraction done, 0 to 1. Raises
    EngineError if weights are not in the folder.
    """
    written: Written = {}
    vision = Arithmetic(many_rows=True, rounded=activations == "int8")
    language = Arithmetic(many_rows=False)  # it also runs single rows, when it decodes
    arithmetic = dict.fromkeys(LANGUAGE_FILES, language) | dict.fromkeys(VISION_FILES, vision)
    with tempfile.TemporaryDirectory(dir=out or folder, prefix="packed-") as temporary:
        names = [name for name in arithmetic if (folder / name).is_file()]
        for index, name in enumerate(names):
            model = load_unread(folder / name)
            int4_products.use_operator(model)
            int8_products.use_operators(model, arithmetic[name])
            total, done = max(weight_bytes(model), 1), 0
            for size in write_graph(model, Path(temporary) / name, written):
                done += size
                progress(f"packing {name}", (index + done / total) / len(names))
        for file in Path(temporary).iterdir():
            file.replace((out or folder) / file.name)
