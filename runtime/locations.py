"""Locations of engine sets: `engines/` of a source checkout, or the user's cache folder for an
installed wheel."""

from __future__ import annotations

import sys
from ctypes.util import find_library
from pathlib import Path
from typing import get_args

from vicort.runtime.manifest import (
    FILE_NAME,
    KV,
    Activations,
    Backend,
    Precision,
    Weights,
    is_other_schema,
)

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ACTIVATIONS: tuple[Activations | None, ...] = (None, *get_args(Activations))
WEIGHTS: tuple[Weights | None, ...] = (None, *get_args(Weights))


def engines_root() -> Path:
    """The folder of all engine sets; it need not exist yet."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "engines").is_dir():
        return checkout / "engines"
    return user_cache() / "vicort" / "engines"


def default_engine_dir(
    model: str,
    precision: Precision,
    backend: Backend,
    weights: Weights | None = None,
    kv: KV = "float",
    activations: Activations | None = None,
) -> Path:
    """`engines/<model>-<precision>[-<weights>]-<backend>[-activations-int8][-kv-int8]`.

    model: `tiny`, or the last part of a folder or of a hub id.
    """
    name = (
        Path(model).resolve().name if Path(model).is_dir() else model.rstrip("/").rsplit("/", 1)[-1]
    )
    parts = (
        name.lower(),
        precision,
        weights,
        backend,
        activations and f"activations-{activations}",
        None if kv == "float" else f"kv-{kv}",
    )
    return engines_root() / "-".join(part for part in parts if part)


def find_engine_dir(model: str) -> Path | None:
    """The newest engine set of this model at the default locations; None if there is none.

    Engine sets for an NVIDIA GPU are ignored without its driver; those of another schema come last.
    """
    backends = [backend for backend in BACKENDS if backend != "tensorrt" or has_nvidia_driver()]
    manifests = [
        default_engine_dir(model, precision, backend, weights, kv, activations) / FILE_NAME
        for precision in PRECISIONS
        for weights in WEIGHTS
        for kv in get_args(KV)
        for activations in ACTIVATIONS
        for backend in backends
    ]
    built = [manifest for manifest in manifests if manifest.is_file()]
    return max(built, key=_preference).parent if built else None


def _preference(manifest: Path) -> tuple[bool, int]:
    return not is_other_schema(manifest.parent), manifest.stat().st_mtime_ns


def has_nvidia_driver() -> bool:
    """Whether CUDA's driver library is found. It is not loaded."""
    return find_library("nvcuda" if sys.platform == "win32" else "cuda") is not None


def user_cache() -> Path:
    """The operating system's folder for cache files."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local"
    return Path.home() / ".cache"
