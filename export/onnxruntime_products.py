"""Lets an engine set multiply with integers by onnxruntime's own operators."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir

from vicort.export import int4_products, int8_products
from vicort.export.graphs import EXPANDED_FILE, Written, write_graph
from vicort.export.int8_products import Arithmetic
from vicort.runtime.manifest import Activations, Manifest

LANGUAGE_FILES = ("llm.onnx", EXPANDED_FILE, "head.onnx")
VISION_FILES = ("vision.onnx", "vision_pruned.onnx")


def packs(manifest: Manifest) -> bool:
    """Whether the graphs of a set become those of this module before they run."""
    return manifest.backend == "onnxruntime" and manifest.weights is not None


def repack(folder: Path, activations: Activations | None = None, out: Path | None = None) -> None:
    """Replace the products with integer weights in the graphs of a set. Weights are written once,
    to the file of the first graph that has them.

    activations: of the vision encoder. out: a folder for the new files; None = those of the set are
    replaced.
    """
    written: Written = {}
    vision = Arithmetic(many_rows=True, rounded=activations == "int8")
    language = Arithmetic(many_rows=False)  # it also runs single rows, when it decodes
    arithmetic = dict.fromkeys(LANGUAGE_FILES, language) | dict.fromkeys(VISION_FILES, vision)
    with tempfile.TemporaryDirectory(dir=out or folder, prefix="packed-") as temporary:
        for name, chosen in arithmetic.items():
            if not (folder / name).is_file():
                continue
            model = onnx_ir.load(folder / name)
            int4_products.use_operator(model)
            int8_products.use_operators(model, chosen)
            for _ in write_graph(model, Path(temporary) / name, written):
                pass
        for file in Path(temporary).iterdir():
            file.replace((out or folder) / file.name)
