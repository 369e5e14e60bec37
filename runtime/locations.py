"""Where engine sets lie: `engines/` of a source checkout, the user's cache folder of an installed
wheel."""

from __future__ import annotations

import sys
from ctypes.util import find_library
from pathlib import Path
from typing import get_args

from vicort.runtime.manifest import FILE_NAME, Backend, Precision

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def engines_root() -> Path:
    """The folder of all engine sets; it need not exist yet."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "engines").is_dir():
        return checkout / "engines"
    return user_cache() / "vicort" / "engines"


def default_engine_dir(model: str, precision: Precision, backend: Backend) -> Path:
    """`engines/<model>-<precision>-<backend>`; model: `tiny`, a folder or a hub id, of which the
    last part counts."""
    name = (
        Path(model).resolve().name if Path(model).is_dir() else model.rstrip("/").rsplit("/", 1)[-1]
    )
    return engines_root() / f"{name.lower()}-{precision}-{backend}"


def find_engine_dir(model: str) -> Path | None:
    """The engine set of this model that was built last, of those that lie where the defaults put
    them; None if there is none.

    Engines for an NVIDIA GPU count only where its driver is.
    """
    backends = [backend for backend in BACKENDS if backend != "tensorrt" or has_nvidia_driver()]
    manifests = [
        default_engine_dir(model, precision, backend) / FILE_NAME
        for precision in PRECISIONS
        for backend in backends
    ]
    built = [manifest for manifest in manifests if manifest.is_file()]
    return max(built, key=lambda manifest: manifest.stat().st_mtime_ns).parent if built else None


def has_nvidia_driver() -> bool:
    """Whether CUDA's driver library can be found; it is not loaded."""
    return find_library("nvcuda" if sys.platform == "win32" else "cuda") is not None


def user_cache() -> Path:
    """The operating system's folder for files that can be made again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local"
    return Path.home() / ".cache"
