"""The options of vicort-run that are about what it writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from vicort.runtime.cli.run_options import Options
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.errors import ConfigError
from vicort.runtime.written_files import check_target


def add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--format",
        choices=tuple(WRITERS),
        default=Options.format,
        help="format of the events on stdout (default: %(default)s)",
    )
    group.add_argument(
        "--stats",
        action="store_true",
        help="also write the budget of memory, and an event for each chunk (formats text and "
        "jsonl)",
    )
    group.add_argument(
        "--success-on-sigterm",
        action="store_true",
        help="exit with 0 instead of 143 when SIGTERM ends the run, as systemd and containers "
        "expect of a service",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be loaded and the budget of memory, and end",
    )
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.json",
        help="write a timeline of the run for https://ui.perfetto.dev",
    )
    group.add_argument(
        "--render",
        type=Path,
        metavar="OUT.mp4",
        help="after the run, write the video of a file with questions and answers drawn on it: "
        "H.264, ending in .mp4, .m4v, .mov or .mkv",
    )
    group.add_argument(
        "--render-font",
        type=Path,
        metavar="FILE.ttf",
        help="TrueType or OpenType font of --render (default: one that has the letters, if the "
        "system has one)",
    )


def check_output(typed: argparse.Namespace) -> None:
    if len(typed.sources) > 1 and not WRITERS[typed.format].shows_sources:
        names = " or ".join(name for name, writer in WRITERS.items() if writer.shows_sources)
        raise ConfigError(
            f"--format {typed.format} supports one source, and {len(typed.sources)} are given: "
            f"use {names}"
        )
    if typed.stats and not WRITERS[typed.format].shows_stats:
        names = " or ".join(name for name, writer in WRITERS.items() if writer.shows_stats)
        raise ConfigError(f"--format {typed.format} cannot show --stats: use {names}")
    if typed.trace is not None:  # not only after a run of hours
        check_target(typed.trace, "--trace")
    if typed.render is not None:
        from vicort.runtime.cli.video_check import check_video_output  # late: imports Pillow

        check_video_output(
            typed.render, typed.sources, live=bool(typed.live), font=typed.render_font
        )
    elif typed.render_font is not None:
        raise ConfigError(
            f"--render-font {typed.render_font} is the font of --render: give that option too"
        )
