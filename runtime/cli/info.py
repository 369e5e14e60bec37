"""vicort-info: what an engine set or a checkpoint is, what it takes, and what of it runs here.

No engine is loaded, and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vicort.runtime.assembly import check_system
from vicort.runtime.cli.checkpoint_info import CheckpointInfo, checkpoint_info, checkpoint_lines
from vicort.runtime.cli.sizes import GB, lacking_memory, machine_text, size_text
from vicort.runtime.cli.writers import duration
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.core import UNIT_FRAMES, MemoryEvent
from vicort.runtime.devices.machine_memory import MachineMemory, host_memory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines.bfloat16 import COST, computes_in_float32
from vicort.runtime.engines.engine_set import pool_dtype
from vicort.runtime.errors import EngineError, VicortError
from vicort.runtime.language.choice_calibration import ChoiceCalibration
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.manifest import FILE_NAME, Manifest, read_manifest
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.memory.memory_plan import unit_pages
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.safe_text import print_safely
from vicort.runtime.shell_completion import add_completion_option
from vicort.runtime.standard_streams import standard_streams

READER_GONE = 141  # exit code: 128 + SIGPIPE
MODEL = "tiny"  # without an argument
CONFIGURATION = "config.json"  # of a checkpoint
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


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
    weights: str | None  # of matrix products; None: of the precision
    activations: str | None  # of the vision encoder, where it multiplies in int8
    kv: str  # what pages hold: float or int8
    built_for: str
    build_command: str
    bytes_on_disk: dict[str, int]  # by file
    frame: tuple[int, int] | None  # width and height in pixels; None: as the source
    max_pixels: int  # area of a frame
    frame_size: str  # both in words
    fps: float  # that the model was trained with
    chunk_frames: int
    unit_tokens: int  # visual tokens of two of the largest frames, before any are dropped
    bytes_a_token: int
    seconds_a_gb: float  # of a stream of which nothing is dropped
    machine: MachineMemory
    missing: str  # why these engines do not run here; "" if nothing is known against it
    calibration: dict[str, Any] | None  # of the probabilities of choices; None: not calibrated
    systems: dict[str, SystemInfo]


@standard_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool and return its exit code."""
    try:
        return _run(arguments)
    except VicortError as error:
        print_safely(f"vicort-info: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # stdout is flushed again at exit, which must not print an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def _run(arguments: Sequence[str] | None) -> int:
    parser = ArgumentParser(
        "vicort-info",
        description="Show what an engine set is, what it takes, and what of it runs here; or what "
        "an engine set of a checkpoint would be.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "engines",
        nargs="?",
        type=Path,
        metavar="ENGINES|MODEL",
        help="folder of an engine set, or of a checkpoint in Hugging Face layout (default, and "
        "`tiny`: the tiny model's engines)",
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    add_completion_option(parser)
    typed = parser.parse_args(arguments)
    folder = typed.engines
    if folder is None or (str(folder) == MODEL and not folder.exists()):
        folder = find_engine_dir(MODEL)
    if folder is None:
        raise EngineError(
            f"no engines of the {MODEL} model are built: run `vicort-build {MODEL}`, or name a "
            "folder"
        )
    found: EngineInfo | CheckpointInfo
    if is_checkpoint(folder):
        found = checkpoint_info(folder)
        text = checkpoint_lines(found)
    else:
        found = info(folder, known_systems())
        text = lines(found)
    if typed.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print_safely(*text)
    return 0


def is_checkpoint(folder: Path) -> bool:
    """Whether this is a checkpoint's folder; else it is an engine set's.

    Raises EngineError for what can be neither, which may be the id of a model on a hub.
    """
    if (folder / FILE_NAME).exists():
        return False
    if (folder / CONFIGURATION).is_file():
        return True
    if not folder.exists() and HUB_ID.fullmatch(str(folder)):
        raise EngineError(
            f"there is no folder {folder}, and vicort-info downloads nothing: if it is a model on "
            f"the Hugging Face hub, `vicort-build {folder}` downloads and builds it"
        )
    why = f"{folder} has neither {FILE_NAME} nor {CONFIGURATION}"
    if not folder.is_dir():
        why = f"no folder {folder}"
    raise EngineError(
        f"{why}: name the folder of an engine set or of a checkpoint, or {MODEL!r} for the "
        "embedded model's engines"
    )


def info(
    folder: Path,
    systems: Sequence[str],
    request: MemoryRequest = MemoryRequest(),  # noqa: B008 (frozen)
) -> EngineInfo:
    """Raises EngineError if there is no usable engine set."""
    manifest = read_manifest(folder)
    model = manifest.model
    machine, missing = machine_for(folder, manifest)
    fitted = ChoiceCalibration.of_folder(folder).fitted
    of_page = page_bytes(model, pool_dtype(manifest))
    of_second = model.fps / UNIT_FRAMES * unit_pages(model) * of_page
    return EngineInfo(
        folder=str(folder),
        model=model.name,
        backend=manifest.backend,
        precision=manifest.precision,
        weights=manifest.weights,
        activations=manifest.activations,
        kv=manifest.kv,
        built_for=manifest.target,
        build_command=manifest.build_command,
        bytes_on_disk={name: file.bytes for name, file in manifest.files.items()},
        frame=model.fixed_size and model.fixed_size[::-1],
        max_pixels=model.max_pixels,
        frame_size=model.frame_size,
        fps=model.fps,
        chunk_frames=model.chunk_frames,
        unit_tokens=model.unit_tokens,
        bytes_a_token=of_page // model.page_tokens,
        seconds_a_gb=GB / of_second,
        machine=machine,
        missing=missing,
        calibration=fitted.model_dump(exclude={"schema_version", "engines"}) if fitted else None,
        systems={name: _system(name, folder, manifest, machine, request) for name in systems},
    )


def machine_for(folder: Path, manifest: Manifest) -> tuple[MachineMemory, str]:
    """The memory of the device that the engines run on, and why they do not run here."""
    host = host_memory()
    if manifest.backend == "tensorrt":
        from vicort.runtime.devices.cuda import open_gpu  # late: others need no driver
        from vicort.runtime.engines.gpu_fit import gpu_memory
        from vicort.runtime.engines.tensorrt import load_tensorrt

        try:
            load_tensorrt(manifest.flavour)
            return gpu_memory(folder, manifest, open_gpu()), ""
        except VicortError as error:
            return MachineMemory(host), str(error)
    if not find_spec(manifest.backend):
        return MachineMemory(host), f"{manifest.backend} is not installed"
    weights = sum(file.bytes for file in manifest.files.values())
    in_float32 = computes_in_float32(manifest.backend, manifest.precision)
    return MachineMemory(host), lacking_memory(weights, in_float32, host)


def _system(
    name: str, folder: Path, manifest: Manifest, machine: MachineMemory, request: MemoryRequest
) -> SystemInfo:
    try:
        fitted = check_system(load_system(name), folder, manifest, machine, request)
        rate = fitted.system.frame_rate(manifest.model.fps)
        return SystemInfo(fitted.event(rate), fitted.given_up)
    except VicortError as error:
        return SystemInfo(None, str(error))


def lines(found: EngineInfo) -> list[str]:
    """The information as text."""
    largest = sorted(found.bytes_on_disk.items(), key=lambda item: -item[1])[:3]
    of_files = ", ".join(f"{name} {size_text(size)}" for name, size in largest)
    tokens = found.unit_tokens * found.fps / UNIT_FRAMES
    weights = f", weights in {found.weights}" if found.weights else ""
    weights += f", activations in {found.activations}" if found.activations else ""
    pages = ", keys and values in int8" if found.kv == "int8" else ""
    rows = {
        "model": found.model,
        "engines": f"{found.backend}, {found.precision}{weights}{pages}, for {found.built_for}",
        "built with": found.build_command,
        "on disk": f"{size_text(sum(found.bytes_on_disk.values()))} ({of_files})",
        "frames": f"{found.frame_size}, {found.fps:g} a second, chunks of {found.chunk_frames}",
        "tokens": f"{'' if found.frame else 'up to '}{found.unit_tokens} for two frames, "
        f"{tokens:g} a second, before dropping",
        "memory": f"{found.bytes_a_token:,} bytes a token; 1 GB holds "
        f"{duration(found.seconds_a_gb)} of which nothing is dropped",
        "here": found.missing or machine_text(found.machine),
        **({"note": COST} if computes_in_float32(found.backend, found.precision) else {}),
    }
    if found.calibration:
        rows["choices"] = _calibration_text(**found.calibration)
    systems = [f"  {name:17} {_system_text(each)}" for name, each in found.systems.items()]
    return [found.folder, *(f"  {key:11} {text}" for key, text in rows.items()), *systems]


def _calibration_text(
    temperature: float, questions: int, ece_before: float, ece_after: float
) -> str:
    return (
        f"at temperature {temperature:.3g}, fitted on {questions} questions; calibration error of "
        f"others {ece_before:.3f}, then {ece_after:.3f}"
    )


def _system_text(found: SystemInfo) -> str:
    if found.budget is None:
        return found.note
    return budget_text(found.budget) + (f"; {found.note}" if found.note else "")


def budget_text(event: MemoryEvent) -> str:
    return event.options + (f", room for {duration(event.seconds)}" if event.seconds else "")


if __name__ == "__main__":
    sys.exit(main())
