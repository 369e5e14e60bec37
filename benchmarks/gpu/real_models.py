"""Qwen2.5-VL at its real sizes with random weights: checkpoints and engine sets."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vicort.benchmarks.common.checkpoints import read_json
from vicort.benchmarks.common.settings import REAL_SIDES
from vicort.benchmarks.gpu.lab import Lab, Skip, need
from vicort.benchmarks.gpu.torch_resizing import with_a_resizer
from vicort.export.random_checkpoint import PUBLISHED, SECTIONS, THETA, config_of
from vicort.runtime.engines.engine_set import LANGUAGE, EngineSet
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphName, GraphSpec

# of a run of the language graph: a chunk of 448x448 whole, so that both sizes of frames share one
# language engine
MAX_ROWS = 2048


@dataclass(frozen=True)
class Size:
    """A model to measure."""

    name: str
    recipe: str  # whose shapes `vicort-build` takes
    vision: dict[str, Any]
    text: dict[str, Any]
    tied: bool  # whether the output head is the token embedding
    theta: float = THETA
    sections: tuple[int, ...] = SECTIONS
    sides: tuple[int, ...] = REAL_SIDES
    max_question_rows: int = MAX_ROWS

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.vision, self.text, self.theta, list(self.sections)) | {
            "tie_word_embeddings": self.tied
        }


SIZES = {
    name: Size(name, f"qwen2.5-vl-{name}", shape.vision, shape.text, shape.tied)
    for name, shape in PUBLISHED.items()
}


# ---- engine sets, of any backend


class Maker(Protocol):
    """Builds and opens GPU engines of one backend."""

    def build(
        self, lab: Lab, size: Size, checkpoint: Path, folder: Path, side: int, shared: Path | None
    ) -> dict[str, Any]:
        """Builds an engine set for square frames of `side` pixels in `folder`, unless it is there;
        returns the times.

        shared: a set of the same model for other frames, whose language engine may be used again;
        None = there is none.
        """
        ...

    def open(self, folder: Path) -> EngineSet: ...


def maker(backend: str) -> Maker:
    """backend: "tensorrt" or "inductor", as `Lab.backend`."""
    if backend == "inductor":
        from vicort.benchmarks.gpu.inductor.inductor_sets import InductorMaker  # late: torch

        return InductorMaker()
    return TensorRTMaker()


@dataclass(frozen=True)
class Place:
    """The files of a size."""

    lab: Lab
    size: Size
    backend: str

    @classmethod
    def of(cls, lab: Lab, name: str) -> Place:
        lab.gpu  # noqa: B018 (skips without one)
        return cls(lab, SIZES[name], lab.backend)

    @property
    def folder(self) -> Path:
        return self.lab.folder / self.size.name

    @property
    def checkpoint(self) -> Path:
        """Raises Skip before step `<size>-build`."""
        return self._made(self.folder / "checkpoint")

    def engine_dir(self, side: int) -> Path:
        """Raises Skip if the step that makes it has not run."""
        return self._made(self.folder / f"{self.backend}-{side}")

    def open(self, side: int) -> EngineSet:
        return with_a_resizer(maker(self.backend).open(self.engine_dir(side)))

    def _made(self, path: Path) -> Path:
        if not path.is_dir():
            later = [side for side in self.size.sides[1:] if path.name.endswith(f"-{side}")]
            step = "-".join([self.size.name, "build", *map(str, later)])
            raise Skip(f"there is no {path.name} of {self.size.name} yet: run step {step} first")
        return path


def build(lab: Lab, name: str, side: int) -> dict[str, Any]:
    """A random checkpoint, made on the device, and its engine set for frames of one size; the
    language engine is shared with a set that is there."""
    from vicort.export.random_checkpoint import write_random

    place = Place.of(lab, name)
    need("torch", "weights are drawn, and engines built, with it")
    size, folder = place.size, place.folder
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, size)
    start, device = time.perf_counter(), drawing_device()
    checkpoint = write_random(folder / "checkpoint", size.config, size.sides[0], device)
    found: dict[str, Any] = {
        "gpu": lab.gpu.name,
        "backend": place.backend,
        "parameters": parameters(checkpoint),
        "checkpoint": {
            "drawn_on": device,
            "seconds": round(time.perf_counter() - start, 1),
            "mb": megabytes(checkpoint),
        },
        "sets": {},
    }
    others = [folder / f"{place.backend}-{other}" for other in size.sides if other != side]
    shared = next((other for other in others if other.is_dir()), None)
    start, target = time.perf_counter(), folder / f"{place.backend}-{side}"
    took = maker(place.backend).build(lab, size, checkpoint, target, side, shared)
    found["sets"][str(side)] = took | {
        "seconds": round(time.perf_counter() - start, 1),
        "mb": megabytes(target),
    }
    peak = [
        resource.getrusage(who).ru_maxrss / 1e6
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return found | {
        "peak_rss_gb": {"this process": round(peak[0], 2), "largest child": round(peak[1], 2)}
    }


def drawing_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_room(folder: Path, size: Size) -> None:
    """Raises Skip if the disk cannot hold the checkpoint, the ONNX files on the way, and the
    engines."""
    weights = 2 * weight_count(size.config)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    wanted, free = 3.2 * weights - there, shutil.disk_usage(folder).free
    if wanted > free:
        others = [
            other.name
            for other in folder.parent.iterdir()
            if other.name in SIZES and other.name != size.name
        ]
        remove = (
            f": remove {', '.join(str(folder.parent / other) for other in others)}"
            if others
            else ""
        )
        raise Skip(
            f"{size.name} takes {wanted / 1e9:.0f} GB in {folder}, {free / 1e9:.0f} are "
            f"free{remove}"
        )


def weight_count(config: dict[str, Any]) -> float:
    """Parameters of a model, but for norms and biases."""
    vision, text = config["vision_config"], config["text_config"]
    d, width = vision["hidden_size"], text["hidden_size"]
    heads = (
        text["num_attention_heads"] + 2 * text["num_key_value_heads"] + text["num_attention_heads"]
    )
    layer = (
        width * width // text["num_attention_heads"] * heads + 3 * width * text["intermediate_size"]
    )
    embeddings = (1 if config["tie_word_embeddings"] else 2) * text["vocab_size"] * width
    merged = d * vision["spatial_merge_size"] ** 2
    patches = 2 * 3 * vision["patch_size"] ** 2 * d
    encoder = (
        vision["depth"] * (4 * d * d + 3 * d * vision["intermediate_size"])
        + patches
        + merged * (merged + width)
    )
    return text["num_hidden_layers"] * layer + embeddings + encoder


def parameters(checkpoint: Path) -> int:
    from vicort.export.random_checkpoint import INDEX, ITEM_BYTES

    return read_json(checkpoint / INDEX)["metadata"]["total_size"] // ITEM_BYTES


def megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6)


class TensorRTMaker:
    """Sets as `vicort-build --backend tensorrt` makes them, with the plugin; sets for several sizes
    of frames share one language plan."""

    def open(self, folder: Path) -> EngineSet:
        return EngineSet.open(folder)

    def build(
        self, lab: Lab, size: Size, checkpoint: Path, folder: Path, side: int, shared: Path | None
    ) -> dict[str, Any]:
        lab.need_tensorrt()
        need("triton", "the plugin's kernels are compiled with it")
        from vicort.export.engine_set_writer import (
            PlanOptions,
            building,
            draft_manifest,
            is_built,
            seal,
            write_engine_set,
        )
        from vicort.export.qwen2_5_vl.configuration import read_configuration
        from vicort.export.recipe import load_recipe, model_spec
        from vicort.export.verify import write_reference
        from vicort.runtime.engines.tensorrt import load_tensorrt
        from vicort.runtime.manifest import read_manifest
        from vicort.runtime.set_folders import publish

        recipe = load_recipe(
            size.recipe, image_width=side, image_height=side, question_rows=size.max_question_rows
        )
        spec = model_spec(size.name, read_configuration(checkpoint), recipe)
        options = PlanOptions(load_tensorrt().flavour)
        command = f"python -m vicort.benchmarks.gpu.check --only {size.name}-build"
        manifest = draft_manifest(checkpoint, spec, "tensorrt", "bf16", command, options)
        if is_built(folder, manifest):
            return {"built": "earlier"}
        phases = Phases()
        reused = read_manifest(shared) if shared else None
        graphs = {
            name: graph
            for name, graph in manifest.graphs.items()
            if name not in LANGUAGE or reused is None
        }
        with building(folder.parent) as temporary:
            write_engine_set(
                temporary,
                checkpoint,
                manifest.model_copy(update={"graphs": graphs}),
                phases.begin,
                options,
            )
            if reused and shared:
                share_language(temporary, shared, manifest.graphs)
                phases.begin("storing what the model computes")
                whole = read_manifest(temporary)
                write_reference(temporary, whole, checkpoint)
                seal(temporary, whole)
            publish(temporary, folder)
        phases.begin("")
        return {"phase_seconds": phases.seconds, "shares": shared.name if shared else None}


def share_language(folder: Path, shared: Path, wanted: Mapping[GraphName, GraphSpec]) -> None:
    """Links the language graph and the output head of another set into a set without them. Raises
    EngineError if they are different graphs."""
    from vicort.export.engine_set_writer import seal
    from vicort.runtime.manifest import read_manifest

    mine, other = read_manifest(folder), read_manifest(shared)
    language = {name: other.graphs[name] for name in LANGUAGE}
    known = {"layer_types", "plan_names"}  # after a build
    if any(
        graph.model_dump(exclude=known) != wanted[name].model_dump(exclude=known)
        for name, graph in language.items()
    ):
        raise EngineError(
            f"{shared} has another language graph than this build: remove it, and build both again"
        )
    (folder / other.embedding.file).unlink(missing_ok=True)
    for name in (*(graph.file for graph in language.values()), other.embedding.file):
        os.link(shared / name, folder / name)
    seal(folder, mine.model_copy(update={"graphs": mine.graphs | language}))


class Phases:
    """Seconds between the lines that a build logs."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._name = ""
        self._since = clock()

    def begin(self, line: str) -> None:
        now = self._clock()
        if self._name:
            self.seconds[self._name] = round(
                self.seconds.get(self._name, 0.0) + now - self._since, 1
            )
        self._name, self._since = line, now
