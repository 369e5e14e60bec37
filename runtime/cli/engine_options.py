"""The options of vicort-run that are about engines, the system and memory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vicort.runtime.cli.presets import PRESETS, preset_text
from vicort.runtime.cli.run_options import Options
from vicort.runtime.command_line import parse_megabytes, parse_rate
from vicort.runtime.devices.machine_cores import checked_threads
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.system import MAX_MB, System, load_system, sets

SHOW_SYSTEM = "--show-system"


def add_engine_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--engine-dir",
        type=Path,
        metavar="DIR",
        help="folder of the engine set (default: the tiny model's, built on first use)",
    )
    group.add_argument(
        "--verify-engines",
        action="store_true",
        help="first compare the engines with what the model computes, which sets for TensorRT "
        "have stored: a compiler may get a graph wrong on one kind of GPU alone",
    )
    group.add_argument(
        "--system",
        metavar="NAME|FILE",
        help="memory system: a name or a YAML file (default: "
        f"{Options.system}, or that of --preset)",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the system, such as --set drop.threshold=0.5; repeatable",
    )
    group.add_argument(
        SHOW_SYSTEM,
        action="store_true",
        help="print the system as --preset, --set, --memory and --host-memory leave it, as a file "
        "for --system, and end",
    )
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="defaults for the frame rate, the system and its share of memory; what is given, also "
        "by --set, wins, and --dry-run shows them (default: none)",
    )
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory for pages on the device, which on a CPU is the machine's, of each source, "
        "such as 4GB (default: a share of what there is, as the system says)",
    )
    group.add_argument(
        "--host-memory",
        metavar="SIZE",
        help="memory for pages that no longer fit there, besides --memory, of systems that move "
        "them to the host (default: a share of the machine's memory)",
    )
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of each running stage (default: all cores that the process may use)",
    )
    group.add_argument(
        "--sequential",
        action="store_true",
        help="run one stage after another, for debugging; the answers are the same",
    )


def preset_defaults(typed: argparse.Namespace) -> dict[str, Any]:
    """The fields of Options that a preset may set; what is given wins."""
    fps, system = read_fps(typed.fps), typed.system
    named = None if system is None else load_system(system)
    if typed.preset is None:
        return {"fps": fps, "system": Options.system if system is None else system}
    preset = PRESETS[typed.preset]
    rate = "--fps" if fps is not None else "--set frames.fps" * sets(typed.set, "frames", "fps")
    if not rate and named and named.frames.fps is not None:
        rate = f"frames.fps of {named.name}"
    given = {
        "fps": rate,
        "system": "--system" * (system is not None),
        "memory": "--memory" * (typed.memory is not None and typed.host_memory is not None),
    }
    return {
        "fps": fps if rate else preset.fps,
        "system": preset.load(typed.preset) if system is None else system,
        "memory_share": preset.memory_share,
        "preset": preset_text(typed.preset, given),
    }


def with_settings(system: str | System, settings: Sequence[str]) -> dict[str, System]:
    """The field of Options that --set changes."""
    if not settings:
        return {}
    chosen = system if isinstance(system, System) else load_system(system)
    return {"system": chosen.with_settings(settings)}


def check_rates(options: Options, settings: Sequence[str]) -> None:
    """Raises ConfigError if --fps and --set name two rates."""
    own, fps = options.chosen_system.frames.fps, options.fps
    if fps is None or not sets(settings, "frames", "fps"):
        return
    if fps != "source" and own == float(fps):
        return
    raise ConfigError(
        f"--fps {fps} and --set frames.fps={'' if own is None else f'{own:g}'} are two "
        "rates: leave one of them out"
    )


def read_fps(text: str | None) -> Fraction | Literal["source"] | None:
    if text is None:
        return None
    if text == "source":
        return "source"
    return parse_rate(
        "--fps",
        text,
        "give a number above 0, such as 2, 29.97 or 30000/1001, or `source` for every frame",
    )


def read_budget(option: str, text: str | None, least: float) -> float | None:
    """MB of 1e6 bytes."""
    if text is None:
        return None
    megabytes = parse_megabytes(option, text)
    if not least <= megabytes <= MAX_MB:
        raise ConfigError(f"{option} {text}: give {least:g}MB to {MAX_MB / 1e6:g}TB, such as 4GB")
    return megabytes


def read_threads(threads: int | None) -> int:
    try:
        return checked_threads(threads)
    except ConfigError as error:
        raise ConfigError(f"--threads: {error}") from error
