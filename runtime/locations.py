"""Locations of engine sets: `engines/` of a source checkout, or the user's cache folder for an
installed wheel."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vicort.runtime.errors import ConfigError
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
HERE = Path(__file__).resolve().parent.parent  # of a checkout or of an installed wheel
DRIVER = "libcuda.so.1"
LOADER_CACHE = Path("/etc/ld.so.cache")
LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/lib/wsl/lib")


def engines_root() -> Path:
    """The folder of all engine sets; it need not exist yet."""
    return HERE / "engines" if _is_checkout() else user_cache() / "vicort" / "engines"


def wheel_engines() -> Path | None:
    """The folder of the embedded model's engine set in an installed wheel, which only `make wheel`
    puts there; None in a checkout."""
    return None if _is_checkout() else HERE / "engines"


def _is_checkout() -> bool:
    return (HERE / "pyproject.toml").is_file() and (HERE / "engines").is_dir()


@dataclass(frozen=True)
class SetKind:
    """What tells the engine sets of one model apart."""

    precision: Precision
    backend: Backend
    weights: Weights | None = None
    kv: KV = "float"
    activations: Activations | None = None

    def folder_name(self, model: str) -> str:
        """`<model>-<precision>[-<weights>]-<backend>[-activations-int8][-kv-int8]`."""
        parts = (
            model_name(model),
            self.precision,
            self.weights,
            self.backend,
            self.activations and f"activations-{self.activations}",
            None if self.kv == "float" else f"kv-{self.kv}",
        )
        return "-".join(part for part in parts if part)


def model_name(model: str) -> str:
    """The name in engine sets of `tiny`, a folder or a hub id: of these two, the last part."""
    folder = Path(model)
    return (folder.resolve().name if folder.is_dir() else model.rstrip("/").split("/")[-1]).lower()


def default_engine_dir(model: str, kind: SetKind) -> Path:
    """Where `vicort-build` puts an engine set without --out. Raises ConfigError if this user has no
    place for engine sets."""
    return engines_root() / kind.folder_name(model)


def find_engine_dir(model: str) -> Path | None:
    """The newest engine set of this model at the default locations, else the one that the wheel
    brought; None if there is none.

    Engine sets for an NVIDIA GPU are ignored without its driver; those of another schema come last.
    Raises ConfigError if this user has no place for engine sets, and the wheel brought none.
    """
    backends = [backend for backend in BACKENDS if backend != "tensorrt" or has_nvidia_driver()]
    wheel = wheel_engines()
    brought = _found(wheel, model, backends) if wheel else None
    try:
        built = _found(engines_root(), model, backends)
    except ConfigError:
        if not brought:
            raise
        built = None
    if brought and (not built or is_other_schema(built.parent)):
        built = brought
    return built.parent if built else None


def _found(root: Path, model: str, backends: Sequence[Backend]) -> Path | None:
    """The manifest of the best set in a folder."""
    manifests = [
        root / SetKind(precision, backend, weights, kv, activations).folder_name(model) / FILE_NAME
        for precision in PRECISIONS
        for weights in WEIGHTS
        for kv in get_args(KV)
        for activations in ACTIVATIONS
        for backend in backends
    ]
    built = [manifest for manifest in manifests if os.path.isfile(manifest)]
    return max(built, key=_preference) if built else None


def _preference(manifest: Path) -> tuple[bool, int]:
    return not is_other_schema(manifest.parent), manifest.stat().st_mtime_ns


def has_nvidia_driver() -> bool:
    """Whether CUDA's driver library is found where the loader looks. It is not loaded, and no
    process is started to look for it."""
    if sys.platform == "win32":
        return find_library("nvcuda") is not None
    named = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    folders = [*named, *LIBRARY_FOLDERS]
    return any(os.path.isfile(Path(folder, DRIVER)) for folder in folders) or _in_loader_cache()


def _in_loader_cache() -> bool:
    try:
        known = LOADER_CACHE.read_bytes()
    except OSError:  # other C libraries than glibc have none
        return False
    paths = re.findall(rb"/[^\0]*/" + re.escape(DRIVER.encode()) + rb"(?=\0)", known)
    return any(os.path.isfile(path) for path in paths)


def _home() -> str:
    """As the environment says, or else the system; "~" if neither does."""
    if os.path.isabs(named := os.environ.get("HOME", "")):
        return named
    with suppress(KeyError, ImportError):  # an unknown user; no such module on Windows
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    return os.path.expanduser("~") if sys.platform == "win32" else "~"


def user_cache() -> Path:
    """The user's folder for cache files: on Linux as the XDG base directory specification says, by
    which a relative path is ignored. Raises ConfigError if the user has none."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if sys.platform not in ("darwin", "win32") and os.path.isabs(named):
        return Path(named)
    home = _home()
    if not os.path.isabs(home):  # no HOME, and a user whom the system does not know
        raise ConfigError(
            f"user {os.getuid()} has no home folder for engine sets: set HOME or XDG_CACHE_HOME, "
            "or name a folder with --engine-dir, or --out of vicort-build"
        )
    if sys.platform == "darwin":
        return Path(home, "Library", "Caches")
    if sys.platform == "win32":
        return Path(home, "AppData", "Local")
    return Path(home, ".cache")
