"""Engine sets of a small random checkpoint, built once in a test run, for both CPU backends."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from support.reference_model import write_random_checkpoint

from vicort.export import build
from vicort.export.engine_set import draft_manifest, seal
from vicort.runtime.manifest import Backend, Manifest, read_manifest

TOKENIZER = Path(__file__).parents[2] / "export" / "tiny" / "checkpoint" / "tokenizer.json"
# 6 visual tokens a unit, 2 units a chunk
OPTIONS = ("--image-size", "56x84", "--chunk-frames", "4")
BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")


@functools.cache
def room() -> Path:
    """A folder that goes when the tests have run."""
    folder = Path(tempfile.mkdtemp(prefix="vicort-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def checkpoint() -> Path:
    folder = room() / "checkpoint"
    folder.mkdir()
    write_random_checkpoint(folder, "tiny", seed=3)
    shutil.copy(TOKENIZER, folder)
    return folder


@functools.cache
def chosen_set() -> Path:
    """What `vicort-build` makes when the backend is left to it."""
    folder = room() / "chosen"
    assert build.main([str(checkpoint()), "--out", str(folder), *OPTIONS]) == 0
    return folder


@functools.cache
def engine_set(backend: Backend) -> Path:
    """The same files, for one backend or the other."""
    folder = room() / backend
    shutil.copytree(chosen_set(), folder)
    manifest = read_manifest(folder)
    seal(
        folder,
        draft_manifest(
            checkpoint(),
            manifest.model,
            backend,
            "fp32",
            f"vicort-build {checkpoint()} --backend {backend}",
        ),
    )
    return folder


def damaged_copy(folder: Path, target: Path, **changes: object) -> Manifest:
    """A copy of a set whose manifest says something else; its fingerprints are right."""
    shutil.copytree(folder, target)
    manifest = Manifest.model_validate(read_manifest(folder).model_dump() | changes)
    seal(target, manifest)
    return manifest
