"""The options of vicort-eval alerts."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.eval_numbers import rate_of, seconds_of
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.system import DEFAULT_SYSTEM

# streams of an hour; how often they are asked, and what a question reads, in seconds
HOURS, VALIDATION_HOURS = 20, 5
ALERT_CACHE = Path("build/alerts")
ASK_EVERY, WINDOW, ALERT_FPS = Fraction(1, 2), Fraction(1, 4), Fraction(4)


def add_alert_options(parser: argparse.ArgumentParser, out: Path) -> None:
    add = parser.add_argument
    words = f"memory system: a name or a YAML file; may be repeated (default: {DEFAULT_SYSTEM})"
    add("--system", action="append", metavar="NAME|FILE", help=words)
    add("--engine-dir", type=Path, metavar="DIR", help="engine set (default: the tiny model's)")
    words = f"folder of record and report; a record is resumed (default: {out}/alerts)"
    add("--out", type=Path, metavar="DIR", help=words)
    words = "streams in held-out looks, an hour each (default: %(default)s)"
    add("--hours", type=int, default=HOURS, metavar="N", help=words)
    words = (
        "streams with other seeds, in looks of training, on which the rule is chosen "
        "(default: %(default)s)"
    )
    add("--validation-hours", type=int, default=VALIDATION_HOURS, metavar="N", help=words)
    add("--seed", type=int, default=0, metavar="N", help="of the first stream (default: 0)")
    words = "folder for its video files, 50 MB an hour (default: %(default)s)"
    add("--cache", type=Path, default=ALERT_CACHE, metavar="DIR", help=words)
    words = f"seconds of stream between two askings (default: {float(ASK_EVERY):g})"
    add("--ask-every", metavar="SECONDS", help=words)
    words = f"seconds before an asking that it reads (default: {float(WINDOW):g})"
    add("--window", metavar="SECONDS", help=words)
    words = f"sampled frames a second (default: {float(ALERT_FPS):g})"
    add("--fps", metavar="N", help=words)
    words = "CPU threads for each stage (default: %(default)s)"
    add("--threads", type=int, default=1, metavar="N", help=words)


def alert_fields(typed: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Fields of EvalOptions, checked. out: the folder below which `--out` is. Raises
    ConfigError."""
    for name, count in (("--hours", typed.hours), ("--validation-hours", typed.validation_hours)):
        if count < 1:
            raise ConfigError(f"{name} {count}: give 1 stream of an hour or more")
    if typed.seed < 0:
        raise ConfigError(f"--seed {typed.seed}: give 0 or more")
    return {
        "systems": tuple(dict.fromkeys(typed.system or [DEFAULT_SYSTEM])),
        "engine_dir": typed.engine_dir,
        "out": typed.out or out / typed.benchmark,
        "fps": rate_of("--fps", typed.fps) or ALERT_FPS,
        "threads": typed.threads,
        "hours": typed.hours,
        "validation_hours": typed.validation_hours,
        "seed": typed.seed,
        "ask_every": seconds_of("--ask-every", typed.ask_every) or ASK_EVERY,
        "window": seconds_of("--window", typed.window) or WINDOW,
        "cache": typed.cache,
    }
