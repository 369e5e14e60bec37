"""What lies in the engines folder: engine sets and whether they run, and what builds left over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vicort.runtime.cli.exporter_process import ask_exporter
from vicort.runtime.cli.info import machine_for
from vicort.runtime.errors import EngineError
from vicort.runtime.locations import has_nvidia_driver
from vicort.runtime.manifest import FILE_NAME, Manifest, read_manifest
from vicort.runtime.safe_text import shown
from vicort.runtime.set_folders import manifest_content, why_foreign
from vicort.runtime.work_folders import NAME, why_kept


@dataclass(frozen=True)
class FoundSet:
    """An engine set, of whatever version."""

    name: str  # of its folder
    model: str
    backend: str
    precision: str
    weights: str | None  # of matrix products; None: of the precision
    activations: str | None  # of the vision encoder, where it multiplies in int8
    kv: str  # what pages hold: float or int8
    bytes: int
    built: str  # local time, YYYY-MM-DD HH:MM
    readable: bool  # whether this version of vicort takes it, be it on another machine
    runs: bool  # whether it runs on this machine
    reason: str  # why it does not run; "" if nothing is known against it
    rebuilt_for: str  # why vicort-build would not call it up to date; "" if it would, or not asked
    is_link: bool  # to a folder elsewhere
    other: str  # what is in the folder that vicort did not make, so that it is never removed


@dataclass(frozen=True)
class Leftover:
    """A folder in which a build worked."""

    name: str
    bytes: int
    busy: str  # why it is not removed; "" if it is what a killed build left


def inspect_root(root: Path, rebuilds: bool = False) -> tuple[list[FoundSet], list[Leftover]]:
    """Both sorted by name. rebuilds: also find out what vicort-build would build again.

    Folders that are neither are left out.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    contents = {path: manifest_content(path) for path in folders if not NAME.fullmatch(path.name)}
    exporter = _exporter() if rebuilds and any(contents.values()) else None
    sets = [_found(path, content, exporter) for path, content in contents.items() if content]
    leftovers = [
        Leftover(path.name, size_of(path), why_kept(path))
        for path in folders
        if NAME.fullmatch(path.name) and not path.is_symlink()
    ]
    return sets, leftovers


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; links are not followed."""
    return sum(found.st_size for found in _within(folder) if stat.S_ISREG(found.st_mode))


def _within(folder: Path) -> Iterator[os.stat_result]:
    """Of everything in a folder that does not vanish meanwhile."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            yield path.lstat()


def _found(folder: Path, content: dict[str, Any], exporter: str | None) -> FoundSet:
    manifest, reason = _read(folder)
    model = content["model"].get("name") if isinstance(content["model"], dict) else None
    built = datetime.fromtimestamp((folder / FILE_NAME).stat().st_mtime)
    return FoundSet(
        name=folder.name,
        model=_text(model),
        backend=_text(content["backend"]),
        precision=_text(content["precision"]),
        weights=_text(content.get("weights")) or None,
        activations=_text(content.get("activations")) or None,
        kv=_text(content.get("kv")) or "float",
        bytes=size_of(folder),
        built=f"{built:%Y-%m-%d %H:%M}",
        readable=manifest is not None,
        runs=manifest is not None and not reason,
        reason=reason,
        rebuilt_for=_rebuilt_for(manifest, exporter) if manifest and exporter else "",
        is_link=folder.is_symlink(),
        other="" if folder.is_symlink() else why_foreign(folder),
    )


def _text(value: Any) -> str:
    return shown(value).strip("'\"") if value is not None else ""


def _read(folder: Path) -> tuple[Manifest | None, str]:
    """The manifest, and why the set does not run here."""
    try:
        manifest = read_manifest(folder)
    except EngineError as error:
        return None, str(error)
    if manifest.backend == "tensorrt" and not has_nvidia_driver():
        return manifest, "there is no NVIDIA driver"
    return manifest, machine_for(folder, manifest)[1]


def _exporter() -> str | None:
    """The hash of the installed exporter; None if nothing can be built here."""
    try:
        metadata.distribution("torch")
        return ask_exporter("exporter_version")
    except (metadata.PackageNotFoundError, EngineError):
        return None


def _rebuilt_for(manifest: Manifest, exporter: str) -> str:
    """The first tool of another version than the set was built with."""
    for tool, built_with in manifest.versions.items():
        try:
            now = exporter if tool == "exporter" else metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
        if now != built_with:
            return f"it was built with {tool} {built_with}, this one is {now}"
    return ""
