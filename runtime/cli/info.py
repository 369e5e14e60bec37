"""vicort-info: what an engine set is, what it takes, and what of it runs on this machine.

No engine is loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from vicort.runtime.assembly import check_system
from vicort.runtime.cli.writers import duration
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.core import UNIT_FRAMES, MemoryEvent
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines.bfloat16 import COST, computes_in_float32
from vicort.runtime.engines.engine_set import pool_dtype
from vicort.runtime.errors import EngineError, VicortError
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.manifest import Manifest, read_manifest
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.memory.memory_plan import unit_pages
from vicort.runtime.policies.system import known_systems, load_system

READER_GONE = 141  # exit code: 128 + SIGPIPE
MODEL = "tiny"  # without an argument
GB = 1_000_000_000
SPARE_GB = 1.5  # that a run takes besides weights and pages


@dataclass(frozen=True)
class SystemInfo:
    """What a system gets on this machine."""

    budget: MemoryEvent | None  # None: it does not run
    note: str  # why, or what it does less of than its file says


@dataclass(frozen=True)
class EngineInfo:
    """Sizes are in bytes, times in seconds."""

    folder: str
    model: str
    backend: str
    precision: str
    kv: str  # what pages hold: float or int8
    built_for: str
    build_command: str
    bytes_on_disk: dict[str, int]  # by file
    frame: tuple[int, int]  # width and height in pixels
    fps: float  # that the model was trained with
    chunk_frames: int
    unit_tokens: int  # visual tokens of two frames, before any are dropped
    bytes_a_token: int
    seconds_a_gb: float  # of a stream of which nothing is dropped
    machine: MachineMemory
    missing: str  # why these engines do not run here; "" if nothing is known against it
    systems: dict[str, SystemInfo]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool and return its exit code."""
    try:
        return _run(arguments)
    except VicortError as error:
        print(f"vicort-info: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # stdout is flushed again at exit, which must not print an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def _run(arguments: Sequence[str] | None) -> int:
    parser = ArgumentParser(
        "vicort-info",
        description="Show what an engine set is, what it takes, and what of it runs here.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "engines",
        nargs="?",
        type=Path,
        metavar="ENGINES",
        help="folder of an engine set (default: the tiny model's)",
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    typed = parser.parse_args(arguments)
    folder = typed.engines or find_engine_dir(MODEL)
    if folder is None:
        raise EngineError(
            f"no engines of the {MODEL} model are built: run `vicort-build {MODEL}`, or name a "
            "folder"
        )
    found = info(folder, known_systems())
    if typed.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print("\n".join(lines(found)))
    return 0


def info(
    folder: Path,
    systems: Sequence[str],
    request: MemoryRequest = MemoryRequest(),  # noqa: B008 (frozen)
) -> EngineInfo:
    """Raises EngineError if there is no usable engine set."""
    manifest = read_manifest(folder)
    model = manifest.model
    machine, missing = _machine(manifest)
    of_page = page_bytes(model, pool_dtype(manifest))
    of_second = model.fps / UNIT_FRAMES * unit_pages(model) * of_page
    return EngineInfo(
        folder=str(folder),
        model=model.name,
        backend=manifest.backend,
        precision=manifest.precision,
        kv=manifest.kv,
        built_for=manifest.target,
        build_command=manifest.build_command,
        bytes_on_disk={name: file.bytes for name, file in manifest.files.items()},
        frame=(model.image_width, model.image_height),
        fps=model.fps,
        chunk_frames=model.chunk_frames,
        unit_tokens=model.unit_tokens,
        bytes_a_token=of_page // model.page_tokens,
        seconds_a_gb=GB / of_second,
        machine=machine,
        missing=missing,
        systems={name: _system(name, folder, manifest, machine, request) for name in systems},
    )


def _machine(manifest: Manifest) -> tuple[MachineMemory, str]:
    """The memory of the device that the engines run on, and why they do not run here."""
    host = host_memory()
    if manifest.backend == "tensorrt":
        from vicort.runtime.devices.cuda import open_gpu  # late: others need no driver
        from vicort.runtime.engines.tensorrt import load_tensorrt

        try:
            load_tensorrt(manifest.flavour)
            return open_gpu().machine_memory(), ""
        except VicortError as error:
            return MachineMemory(host), str(error)
    if not find_spec(manifest.backend):
        return MachineMemory(host), f"{manifest.backend} is not installed"
    in_float32 = computes_in_float32(manifest.backend, manifest.precision)
    weights = sum(file.bytes for file in manifest.files.values()) * (2 if in_float32 else 1)
    needed = weights + SPARE_GB * GB
    if needed > host:
        return MachineMemory(host), (
            f"weights{' in float32' * in_float32} and a margin of {SPARE_GB:g} GB are "
            f"{needed / GB:.1f} GB, this machine has {host / GB:.1f} GB"
        )
    return MachineMemory(host), ""


def _system(
    name: str, folder: Path, manifest: Manifest, machine: MachineMemory, request: MemoryRequest
) -> SystemInfo:
    try:
        fitted = check_system(load_system(name), folder, manifest, machine, request)
        return SystemInfo(fitted.event(manifest.model.fps), fitted.given_up)
    except VicortError as error:
        return SystemInfo(None, str(error))


def lines(found: EngineInfo) -> list[str]:
    """The information as text."""
    width, height = found.frame
    largest = sorted(found.bytes_on_disk.items(), key=lambda item: -item[1])[:3]
    of_files = ", ".join(f"{name} {_size(size)}" for name, size in largest)
    tokens = found.unit_tokens * found.fps / UNIT_FRAMES
    pages = ", keys and values in int8" if found.kv == "int8" else ""
    rows = {
        "model": found.model,
        "engines": f"{found.backend}, {found.precision}{pages}, for {found.built_for}",
        "built with": found.build_command,
        "on disk": f"{_size(sum(found.bytes_on_disk.values()))} ({of_files})",
        "frames": f"{width}x{height}, {found.fps:g} a second, chunks of {found.chunk_frames}",
        "tokens": f"{found.unit_tokens} for two frames, {tokens:g} a second, before dropping",
        "memory": f"{found.bytes_a_token:,} bytes a token; 1 GB holds "
        f"{duration(found.seconds_a_gb)} of which nothing is dropped",
        "here": found.missing or _machine_text(found.machine),
        **({"note": COST} if computes_in_float32(found.backend, found.precision) else {}),
    }
    systems = [f"  {name:17} {_system_text(each)}" for name, each in found.systems.items()]
    return [found.folder, *(f"  {key:11} {text}" for key, text in rows.items()), *systems]


def _machine_text(machine: MachineMemory) -> str:
    host = f"{machine.host / GB:.1f} GB of memory"
    return host if machine.device is None else f"a GPU with {machine.device / GB:.1f} GB, {host}"


def _system_text(found: SystemInfo) -> str:
    if found.budget is None:
        return found.note
    return budget_text(found.budget) + (f"; {found.note}" if found.note else "")


def budget_text(event: MemoryEvent) -> str:
    return event.options + (f", room for {duration(event.seconds)}" if event.seconds else "")


def _size(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
