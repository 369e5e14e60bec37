"""The options of vicort-run that are about reading a video."""

from __future__ import annotations

import argparse
from typing import get_args

from vicort.runtime.cli.run_options import Options
from vicort.runtime.core import Freshness
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown
from vicort.runtime.sources.input_format import check_input_format
from vicort.runtime.sources.limits import FFMPEG_INT_MAX
from vicort.runtime.sources.opening import Decode


def add_video_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fps",
        metavar="N|source",
        help="frames per second to sample, or `source` for every frame (default: that of the "
        "system or of --preset, or else the rate that the model was trained with)",
    )
    group.add_argument(
        "--stream",
        type=int,
        metavar="N",
        help="index of the video stream in the file (default: the first one)",
    )
    group.add_argument(
        "--input-format",
        metavar="NAME",
        help="FFmpeg's name of the format of a file, stdin or an http(s) URL, such as mjpeg or "
        "h264 (default: found out from the bytes)",
    )
    group.add_argument(
        "--decode",
        choices=get_args(Decode),
        default=Options.decode,
        help="where to decode; auto uses NVDEC if it is available and the engines run on an "
        "NVIDIA GPU (default: %(default)s)",
    )
    group.add_argument(
        "--realtime", action="store_true", help="play a file at the speed of its timestamps"
    )
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--live",
        action="store_true",
        help="live source: drop frames rather than wait (implies --on-lag drop-oldest)",
    )
    kind.add_argument(
        "--file",
        action="store_true",
        help="recorded source: wait rather than drop frames (implies --on-lag wait)",
    )
    group.add_argument(
        "--on-lag",
        choices=("wait", "drop-oldest"),
        help="what to do when frames arrive faster than they are processed (default: wait)",
    )
    group.add_argument(
        "--freshness",
        choices=get_args(Freshness),
        default=Options.freshness,
        help="what a question sees: every frame until its time, for which it waits, or what is in "
        "memory now, for the fastest answer (default: %(default)s)",
    )


def check_video_options(typed: argparse.Namespace) -> None:
    """Raises ConfigError."""
    if typed.stream is not None and not 0 <= typed.stream <= FFMPEG_INT_MAX:
        raise ConfigError(
            f"--stream {shown(typed.stream)} is not an index: give 0 or more, as `ffprobe` numbers "
            "streams"
        )
    if typed.input_format is not None:
        check_input_format(typed.input_format)
