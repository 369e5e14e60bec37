"""vicort-run: watch sources, answer questions about them.

source -> session -> events, one source after another. What is typed is checked before anything heavy is loaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import ConfigError, EngineError, TruncatedSource, VicortError
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.output import Output
from vicort.runtime.questions import parse_ask, read_questions, with_ids
from vicort.runtime.sampler import as_rate
from vicort.runtime.session import Session
from vicort.runtime.sources import Source, open_source
from vicort.runtime.sources.opening import FORMS, IMAGE_FPS
from vicort.runtime.system import load_system
from vicort.runtime.token_choice import TokenChoice
from vicort.runtime.trace import Trace
from vicort.runtime.writers import WRITERS

MODEL = "tiny"  # the embedded default
DEFAULT_SYSTEM = "vicostream"
INTERRUPTED = 130  # exit code: 128 + SIGINT
READER_GONE = 141  # exit code: 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see `vicort-run --help`")


def parser() -> argparse.ArgumentParser:
    default = Sampling()
    parser = Parser("vicort-run", description="Watch a video and answer questions about it, while it comes in.", allow_abbrev=False)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=f"{FORMS}; several are watched one after another, each on its own")
    parser.add_argument("--version", action="version", version=f"vicort {metadata.version('vicort')}")
    parser.add_argument("--engine-dir", type=Path, metavar="DIR", help="engine set; default: the tiny model's, built if there is none")
    parser.add_argument("--system", default=DEFAULT_SYSTEM, metavar="NAME|FILE", help="what is remembered and how (default: %(default)s)")
    parser.add_argument("--sequential", action="store_true", help="one stage at a time: same answers, slower, easier to debug")

    video = parser.add_argument_group("video")
    video.add_argument("--fps", metavar="N|source", help="frames a second to take, or every frame (default: as the model was trained)")
    video.add_argument("--stream", type=int, metavar="N", help="index of the video stream in its file (default: the first)")
    video.add_argument("--realtime", action="store_true", help="play a file by its timestamps")
    kind = video.add_mutually_exclusive_group()
    kind.add_argument("--live", action="store_true", help="the source waits for nobody: implies --on-lag drop-oldest")
    kind.add_argument("--file", action="store_true", help="the source can wait: implies --on-lag wait (default)")
    video.add_argument("--on-lag", choices=("wait", "drop-oldest"), help="what happens to frames that come too fast")

    questions = parser.add_argument_group("questions")
    questions.add_argument("--ask", action="append", default=[], metavar="'[@SECONDS] QUESTION'", help="at a time, or at the end; repeatable")
    questions.add_argument("--questions", type=Path, metavar="FILE.jsonl", help='lines of {"at": seconds|null, "question": "…", "id": "…"}')
    questions.add_argument("--temperature", type=float, default=default.temperature, help="0 = always the likeliest token (default)")
    questions.add_argument("--top-p", type=float, default=default.top_p, help="share of the likeliest tokens to draw from (default: %(default)s)")
    questions.add_argument("--top-k", type=int, default=default.top_k, help="number of the likeliest tokens to draw from, 0 = all (default)")
    questions.add_argument("--seed", type=int, default=default.seed, help="of the draw (default: %(default)s)")
    questions.add_argument("--max-tokens", type=int, default=default.max_tokens, help="longest answer (default: %(default)s)")

    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=tuple(WRITERS), default="text", help="of the events on stdout (default: %(default)s)")
    output.add_argument("--stats", action="store_true", help="an event for each chunk too (text and jsonl)")
    output.add_argument("--trace", type=Path, metavar="FILE.json", help="write what ran when, for https://ui.perfetto.dev")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line tool; returns its exit code."""
    try:
        return run(parser().parse_args(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit stays quiet too
        return READER_GONE
    except VicortError as error:
        print(f"vicort-run: {error}", file=sys.stderr)
        return error.exit_code


def run(options: argparse.Namespace) -> int:
    fps = _checked_fps(options.fps)
    questions = _checked_questions(options)
    _check(options)
    trace = Trace() if options.trace else None
    with ExitStack() as stack:
        writer = WRITERS[options.format]
        sources = [stack.enter_context(_open(spec, options, fps)) for spec in options.sources]
        engine_dir = options.engine_dir or _default_engines()
        code = 0
        for source in sources:
            code = max(code, watch(source, questions, ...))
    return code
