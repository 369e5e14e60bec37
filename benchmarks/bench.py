"""`vicort-bench`: vicort's speed on this machine, as JSON, tables and pictures.

Each part runs in a child process, so that its memory and threads affect no other part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.children import in_child
from vicort.benchmarks.common.settings import QUICK, Settings
from vicort.benchmarks.common.tables import Table
from vicort.export.library_caches import temporary_caches
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.entry_points import code_of
from vicort.runtime.errors import ConfigError, VicortError
from vicort.runtime.packages import check_installed
from vicort.runtime.safe_text import print_safely
from vicort.runtime.shell_completion import add_completion_option
from vicort.runtime.standard_streams import standard_streams
from vicort.runtime.written_files import check_target, write_file

SCHEMA = 1
CACHE = Path("build/bench")
OUT = Path("benchmarks/results/bench.json")
REAL_SIZE = "real-size"  # never measured unless it is named; its result is a file of its own
REAL_SIZE_OUT = Path("benchmarks/results/real-size.json")
REAL_SIZE_OPTIONS = ("checkpoint", "engines", "genai_model", "clip", "rounds", "minutes")
TINY_ENGINES = ("openvino", "fp32")  # of the parts that measure one engine set


def tiny_engine_dir(cache: Path) -> Path:
    from vicort.benchmarks.common.engine_sets import tiny_model  # late: imports torch

    return tiny_model().engines(cache, *TINY_ENGINES)


def machine(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common.checkpoints import matrix_shapes
    from vicort.benchmarks.common.machine import ceilings

    return ceilings(
        settings.matrix_size, settings.copy_mb, settings.matrix_repeats, matrix_shapes()
    )


def overlap(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common import overlap

    return overlap.measure(tiny_engine_dir(cache), settings)


def transformers_tiny(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common.engine_sets import tiny_model
    from vicort.benchmarks.cpu.against_transformers import measure

    return measure(tiny_model(), cache, settings)


def transformers_medium(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common.engine_sets import medium_model
    from vicort.benchmarks.cpu.against_transformers import measure

    return measure(medium_model(cache), cache, settings)


def long_stream(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common import long_stream

    return long_stream.measure(tiny_engine_dir(cache), settings)


def first_token(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common import first_token

    return first_token.measure(tiny_engine_dir(cache), settings)


def systems(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.common.engine_sets import speaking_model
    from vicort.benchmarks.systems import systems

    speaking = speaking_model().engines(cache, *TINY_ENGINES)
    return systems.measure(systems.EngineDirs(tiny_engine_dir(cache), speaking), cache, settings)


def migration(cache: Path, settings: Settings) -> dict[str, Any]:
    from vicort.benchmarks.systems import migration

    return migration.measure(tiny_engine_dir(cache), cache, settings)


Part = Callable[[Path, Settings], dict[str, Any]]
PARTS: dict[str, Part] = {
    "machine": machine,
    "overlap": overlap,
    "transformers-tiny": transformers_tiny,
    "transformers-medium": transformers_medium,
    "long-stream": long_stream,
    "first-token": first_token,
    "systems": systems,
    "migration": migration,
}
CAP = "cap"  # measures nothing: it is worked out from the part `systems` of the same result
ALL = [*PARTS, CAP]


def run(
    names: Sequence[str], cache: Path, settings: Settings, quick: bool, out: Path
) -> dict[str, Any]:
    """Measure these parts, one after another; what is done is in `out` even if a later part fails.

    Parts that `out` already holds, measured on the same machine with the same libraries and
    settings, stay; each part has its own date.
    """
    from vicort.benchmarks.common.machine import conditions, now
    from vicort.benchmarks.systems.cap import place

    amounts = json.loads(json.dumps(vars(settings)))
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "quick": quick,
        "conditions": conditions(),
        "settings": amounts,
        "parts": {},
    }
    result["parts"] = earlier_parts(out, result)
    for name in names:
        moment, start = now(), time.perf_counter()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        part = place(result["parts"]) if name == CAP else in_child(PARTS[name], cache, settings)
        result["parts"][name] = part | {"measured": moment}
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        result["parts"] = {part: result["parts"][part] for part in ALL if part in result["parts"]}
        write_file(out, json.dumps(result, indent=1) + "\n", "--out")
    return result


def earlier_parts(out: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Parts of an earlier run in `out` that can be kept beside those of `result`."""
    if not out.is_file():
        return {}
    try:
        earlier = json.loads(out.read_text())
    except ValueError as error:
        raise ConfigError(
            f"--out {out} exists and is no result of vicort-bench ({error}): name another file"
        ) from error
    comparable = ("cpu", "cores", "memory_gb", "python", "libraries")
    same = (
        all(earlier.get(key) == result[key] for key in ("schema", "quick"))
        # an amount that came later concerns later parts alone
        and earlier["settings"].items() <= result["settings"].items()
        and all(earlier["conditions"].get(key) == result["conditions"][key] for key in comparable)
    )
    return earlier["parts"] if same else {}


@standard_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = _parse(arguments)
        with temporary_caches():
            return _bench(options)
    except VicortError as error:
        print_safely(f"vicort-bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        return code_of(interruption)


def _bench(options: argparse.Namespace) -> int:
    check_installed("bench")
    if REAL_SIZE in options.only:
        return _real_size(options)
    if given := [name for name in REAL_SIZE_OPTIONS if getattr(options, name) is not None]:
        raise ConfigError(f"--{given[0].replace('_', '-')} is an option of `--only {REAL_SIZE}`")
    settings = QUICK if options.quick else Settings()
    names = _chosen(options.only, settings)
    options.cache.mkdir(parents=True, exist_ok=True)
    out = _out(options, "quick.json", OUT)
    result = run(names, options.cache.resolve(), settings, options.quick, out)
    print(report(result))
    written = [out, *drawn(result, out), *pages(result, out)]
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _real_size(options: argparse.Namespace) -> int:
    from vicort.benchmarks.real_size import real_size_part

    if set(options.only) != {REAL_SIZE}:
        raise ConfigError(
            f"--only {REAL_SIZE}: its result is a file of its own: run the other parts without it"
        )
    given = {
        name: value for name in REAL_SIZE_OPTIONS if (value := getattr(options, name)) is not None
    }
    if options.quick:
        given = {"rounds": 1} | given
    if options.engines:
        given["engines"] = tuple(options.engines)
    options.cache.mkdir(parents=True, exist_ok=True)
    out = _out(options, f"{REAL_SIZE}-quick.json", REAL_SIZE_OUT)
    result = real_size_part.measure(
        real_size_part.RealSizeOptions(**given), options.cache.resolve(), out
    )
    print("\n".join(real_size_part.table(result).text()))
    print(f"\nwritten: {out}")
    return 0


def _out(options: argparse.Namespace, quick: str, whole: Path) -> Path:
    """The file for the result. Raises ConfigError if it cannot be written."""
    out: Path = options.out or (options.cache / quick if options.quick else whole)
    check_target(out, "--out")
    return out


def report(result: dict[str, Any]) -> str:
    """The whole result as text: a block a part, then the tables of the systems."""
    from vicort.benchmarks.cpu.report import text

    blocks = [table for found in tables(result["parts"]).values() for table in found]
    return "\n".join([text(result), *(line for each in blocks for line in ("", *each.text()))])


def tables(parts: dict[str, Any]) -> dict[str, list[Table]]:
    """Of the parts that compare systems."""
    from vicort.benchmarks.systems import cap, migration_report, systems_report

    found: dict[str, list[Table]] = {}
    if "systems" in parts:
        found["systems"] = systems_report.tables(parts["systems"])
    if "migration" in parts:
        found["migration"] = [migration_report.table(parts["migration"])]
    if CAP in parts:
        found[CAP] = [cap.table(parts[CAP])]
    return found


def pages(result: dict[str, Any], out: Path) -> list[Path]:
    """Writes the systems' tables beside `out` as Markdown, with the conditions; returns the
    files."""
    from vicort.benchmarks.cpu.report import conditions

    written = []
    for name, found in tables(result["parts"]).items():
        path = out.with_name(f"{out.stem}-{name}.md")
        lines = [
            f"<!-- made by vicort-bench from {out.name} -->",
            *(f"{line}  " for line in conditions(result)),
            *(line for each in found for line in ("", *each.markdown())),
        ]
        write_file(path, "\n".join(lines) + "\n")
        written.append(path)
    return written


def drawn(result: dict[str, Any], out: Path) -> list[Path]:
    """Draws the pictures beside `out`: one of the parts that measure the pipeline, one each of the
    systems, the migration and CAP; returns the files."""
    from vicort.benchmarks.cpu import picture
    from vicort.benchmarks.systems import pictures

    painters = {
        "": picture.draw,
        "-systems": pictures.draw_systems,
        "-migration": pictures.draw_migration,
        "-cap": pictures.draw_cap,
    }
    paths = [
        draw(result, out.with_name(f"{out.stem}{name}.png")) for name, draw in painters.items()
    ]
    return [path for path in paths if path]


def _chosen(only: Sequence[str], settings: Settings) -> list[str]:
    if unknown := [name for name in only if name not in ALL]:
        parts = ", ".join([*ALL, REAL_SIZE])
        raise ConfigError(f"--only {unknown[0]}: unknown part: choose from {parts}")
    return sorted(set(only), key=ALL.index) or [
        name for name in ALL if settings.medium or name != "transformers-medium"
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="vicort-bench",
        description="Measure vicort on this machine's CPU: JSON, tables and pictures.",
    )
    add = parser.add_argument
    words = "tiny amounts, to see in about two minutes that everything runs"
    add("--quick", action="store_true", help=words)
    words = (
        f"measure this part alone (may be repeated): {', '.join(ALL)}; or {REAL_SIZE}, which is "
        "never measured otherwise"
    )
    add("--only", action="append", default=[], metavar="PART", help=words)
    words = (
        f"JSON file; pictures and tables go beside it ({OUT}; with --quick {CACHE}/quick.json; of "
        f"{REAL_SIZE} {REAL_SIZE_OUT})"
    )
    add("--out", type=Path, help=words)
    words = "folder for engine sets and videos (%(default)s)"
    add("--cache", type=Path, default=CACHE, help=words)
    _add_real_size_options(parser)
    add_completion_option(parser)
    return parser.parse_args(arguments)


def _add_real_size_options(parser: argparse.ArgumentParser) -> None:
    """Of part real-size. Without a default here, so that they are refused with other parts."""
    group = parser.add_argument_group(
        f"--only {REAL_SIZE}",
        "vicort, transformers and OpenVINO GenAI with a model of real size, on one clip",
    )
    add = group.add_argument
    words = "checkpoint folder, for transformers (build/3b)"
    add("--checkpoint", type=Path, metavar="DIR", help=words)
    words = "engine sets of vicort (build/3b-int4)"
    add("--engines", type=Path, nargs="+", metavar="DIR", help=words)
    words = "the checkpoint as optimum-cli converts it for OpenVINO GenAI (build/3b-genai)"
    add("--genai-model", type=Path, metavar="DIR", help=words)
    add("--clip", type=Path, metavar="FILE", help="video (13 s at 320x180, which is drawn)")
    add("--rounds", type=int, metavar="N", help="runs of each (3; with --quick 1)")
    words = "timeout of a run (10)"
    add("--minutes", type=float, metavar="N", help=words)


if __name__ == "__main__":
    sys.exit(main())
