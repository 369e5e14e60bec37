"""Where engine sets lie: `engines/` of a source checkout, the user's cache folder of an installed wheel."""

from __future__ import annotations

import sys
from pathlib import Path

from vicort.runtime.manifest import FILE_NAME, Backend, Precision

PREFERRED: tuple[Backend, ...] = ("tensorrt", "openvino", "onnxruntime")


def engines_root() -> Path:
    """The folder of all engine sets; it need not exist yet."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "engines").is_dir():
        return checkout / "engines"
    return user_cache() / "vicort" / "engines"


def default_engine_dir(model: str, precision: Precision, backend: Backend) -> Path:
    """`engines/<model>-<precision>-<backend>`; model: `tiny`, a folder or a hub id, of which the last part counts."""
    name = Path(model).resolve().name if Path(model).is_dir() else model.rstrip("/").rsplit("/", 1)[-1]
    return engines_root() / f"{name.lower()}-{precision}-{backend}"


def find_engine_dir(model: str) -> Path | None:
    """An engine set of this model that was built with the defaults, the fastest kind first; None if there is none."""
    for backend in PREFERRED:
        folder = default_engine_dir(model, "fp32", backend)
        if (folder / FILE_NAME).is_file():
            return folder
    return None


def user_cache() -> Path:
    """The operating system's folder for files that can be made again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local"
    return Path.home() / ".cache"
