"""A TensorRT set, built once in a test run, and the ONNX files that it is made of.

In the default run it is that of a random checkpoint of two layers, because export takes a time
that grows with layers. Where slow tests run it is the embedded model's, which has four.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from support.engine_sets import checkpoint
from support.shared import once, shared_folder
from support.sizes import is_thorough

from vicort.export import build, engine_set_writer
from vicort.export.checkpoint import TINY, resolve
from vicort.export.graphs import expand, plan_signatures, remove_functions, signatures, write_nodes
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.tensorrt_plans import build_plan
from vicort.runtime.engines.reference import REFERENCE_FILE, ReferenceRun, read_runs
from vicort.runtime.manifest import GraphName, GraphSpec, ModelSpec, read_manifest

ONE_GPU = (90,)  # architectures: test_kernels.py has these cubins too, and the other ones


@functools.cache
def tiny_checkpoint() -> Path:
    # its name is that of the embedded model's recipe and more
    return resolve(TINY) if is_thorough() else checkpoint(f"{TINY}-two-layers")


def tiny_name() -> str:
    """The MODEL argument with which `tiny_set` is built."""
    return TINY if is_thorough() else str(tiny_checkpoint())


@functools.cache
def tiny_set() -> Path:
    """What `vicort-build` makes of it for TensorRT, with kernels for one architecture.

    On the way it copies the ONNX files, which the build throws away, to `tiny_onnx()`.
    """
    return once("tiny-bf16-tensorrt", _build)


def _build(folder: Path) -> None:
    onnx = _onnx()
    shutil.rmtree(onnx, ignore_errors=True)  # of a build that failed
    onnx.mkdir()

    def copy_and_build(job, *args):
        shutil.copytree(job.model.parent, onnx, dirs_exist_ok=True)
        return build_plan(job, *args)

    def expand_and_remove(exported):
        other = exported.clone()
        expand(other)
        write_nodes(other, onnx / "llm.expanded.onnx")
        remove_functions(exported)

    with (
        mock.patch.object(engine_set_writer, "build_plan", copy_and_build),
        mock.patch.object(engine_set_writer, "remove_functions", expand_and_remove),
        mock.patch.object(engine_set_writer, "kernel_architectures", return_value=ONE_GPU),
    ):
        assert build.main([tiny_name(), "--backend", "tensorrt", "--out", str(folder)]) == 0


def _onnx() -> Path:
    return shared_folder() / "tiny-bf16-onnx"


def tiny_onnx() -> Path:
    """Folder of the bf16 graphs as TensorRT is given them: <name>.onnx, and llm.expanded.onnx for a
    plan without the plugin."""
    tiny_set()
    return _onnx()


@functools.cache
def tiny_model() -> ModelSpec:
    name = tiny_checkpoint().name if tiny_name() != TINY else TINY
    return model_spec(name, read_configuration(tiny_checkpoint()), load_recipe(TINY))


def plan_graphs(plugin: bool = True, strip: bool = False) -> dict[GraphName, GraphSpec]:
    return plan_signatures(signatures(tiny_model(), "bf16"), tiny_model(), plugin, strip)


def stored_runs(folder: Path) -> list[ReferenceRun]:
    """What a set of plans, which cannot be loaded here, stores of the model's computations."""
    manifest = read_manifest(folder)
    unloaded = SimpleNamespace(
        manifest=manifest, engine=lambda name: SimpleNamespace(signature=manifest.graphs[name])
    )
    return list(read_runs(folder / REFERENCE_FILE, unloaded))
