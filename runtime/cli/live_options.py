"""The options of vicort-run that are about live sources and their limits."""

from __future__ import annotations

import argparse
from typing import get_args

from vicort.runtime.cli.engine_options import read_budget
from vicort.runtime.cli.run_options import Options
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown
from vicort.runtime.sources.limits import FFMPEG_INT_MAX, Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.opening import Transport

MAX_TIMEOUT = 86_400  # seconds
MAX_ATTEMPTS = 10**9  # a thousand years, at most one in 30 s


def add_live_options(group: argparse._ArgumentGroup) -> None:
    patience, limits = Patience(), Limits()
    group.add_argument(
        "--rtsp-transport",
        choices=get_args(Transport),
        default=Options.rtsp_transport,
        help="transport of RTSP packets (default: %(default)s)",
    )
    group.add_argument(
        "--open-timeout",
        type=float,
        default=patience.open_timeout,
        metavar="SECONDS",
        help="timeout for connecting (default: %(default)s)",
    )
    group.add_argument(
        "--read-timeout",
        type=float,
        metavar="SECONDS",
        help="timeout for the next data (default: 10, or 30 for HLS)",
    )
    group.add_argument(
        "--reconnect",
        type=int,
        metavar="N",
        help="maximum number of reconnection attempts in a row (default: unlimited)",
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        default=limits.pixels,
        metavar="N",
        help="maximum number of pixels in a frame (default: %(default)s)",
    )
    group.add_argument(
        "--max-fps",
        type=int,
        default=limits.fps,
        metavar="N",
        help="maximum frame rate that a source may declare (default: %(default)s)",
    )
    group.add_argument(
        "--max-decode-time",
        type=float,
        default=limits.seconds,
        metavar="SECONDS",
        help="maximum processor time for opening a source, and for each picture (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--max-decode-memory",
        metavar="SIZE",
        help="maximum memory of the process that decodes a source, such as 4GB (default: "
        f"{limits.decoding_bytes / 1e6:.0f}MB, which grows with --max-pixels)",
    )
    group.add_argument(
        "--in-process",
        action="store_true",
        help="decode in the program's own process, without these two limits, for sources that "
        "you trust (default: each source has a process of its own)",
    )


def read_patience(typed: argparse.Namespace) -> Patience:
    for name in ("open_timeout", "read_timeout"):
        seconds = getattr(typed, name)
        if seconds is not None and not 0 < seconds <= MAX_TIMEOUT:
            raise ConfigError(
                f"--{name.replace('_', '-')} {seconds:g}: give a number of seconds above 0 and at "
                f"most {MAX_TIMEOUT}, such as 10"
            )
    if typed.reconnect is not None and not 0 <= typed.reconnect <= MAX_ATTEMPTS:
        raise ConfigError(
            f"--reconnect {shown(typed.reconnect)}: give 0 to {MAX_ATTEMPTS} attempts, or leave "
            "the option out to retry without limit"
        )
    return Patience(typed.open_timeout, typed.read_timeout, attempts=typed.reconnect)


def read_limits(typed: argparse.Namespace) -> Limits:
    for name, value in (("pixels", typed.max_pixels), ("fps", typed.max_fps)):
        if not 1 <= value <= FFMPEG_INT_MAX:
            raise ConfigError(
                f"--max-{name} {shown(value)}: give a number from 1 to {FFMPEG_INT_MAX}"
            )
    if not 0 < typed.max_decode_time <= MAX_TIMEOUT:
        raise ConfigError(
            f"--max-decode-time {typed.max_decode_time:g}: give a number of seconds above 0 and at "
            f"most {MAX_TIMEOUT}, such as 10"
        )
    megabytes = read_budget("--max-decode-memory", typed.max_decode_memory, least=64)
    memory = None if megabytes is None else int(megabytes * 1e6)
    return Limits(typed.max_pixels, typed.max_fps, typed.max_decode_time, memory)
