"""The command line of vicort-eval: what may be typed, and what it comes to."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NoReturn

from vicort.benchmarks.evaluation import rvs
from vicort.benchmarks.evaluation.judge import ExactJudge, Judge, make_judge
from vicort.benchmarks.evaluation.shapestream import AGE_UNITS, AGES, CACHE, STREAMS, AgeIn
from vicort.benchmarks.evaluation.watching import CARRIES, Carry
from vicort.runtime.errors import ConfigError
from vicort.runtime.sources.sampler import as_rate

BENCHMARKS = {
    "streamingbench": "StreamingBench: JSON files, or Real_Time_Visual_Understanding.csv",
    "ovo-bench": "OVO-Bench: ovo_bench_new.json and the source videos, uncut",
    "rvs": "RVS-Ego and RVS-Movie: test_qa_ego4d.json, test_qa_movienet.json",
    "shapestream": "the synthetic world of the embedded model: accuracy by the age of the event",
}
OUT = Path("build/eval")
# where none is named: the default of vicort-run; shapestream takes all there are
SYSTEM = "vicostream"


@dataclass(frozen=True)
class Options:
    """A checked command line."""

    benchmark: str
    files: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    systems: tuple[str, ...] = (SYSTEM,)  # none = all there are
    engine_dir: Path | None = None  # None = the tiny model's
    out: Path = OUT
    carry: Carry = "state"
    context: Fraction | None = None  # seconds before a question that are seen; None = all
    # frames a second; None = as the model was trained
    fps: Fraction | Literal["source"] | None = None
    max_tokens: int | None = None  # of an answer; None = as the benchmark does
    limit: int | None = None  # videos
    threads: int = 1
    strict: bool = False
    judge: Judge = ExactJudge()  # noqa: RUF009 (has no state)
    image_fps: Fraction | None = None
    streams: int = STREAMS
    ages: tuple[int, ...] = AGES
    age_in: AgeIn = "units"
    cache: Path = CACHE


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Parse and check, without loading anything heavy. Raises ConfigError; leaves with SystemExit
    after --help."""
    typed = _parser().parse_args(arguments)
    if typed.context is not None and typed.protocol != "restart":
        raise ConfigError(
            f"--context {typed.context} cuts the video for each question: it needs --protocol "
            "restart"
        )
    if typed.limit is not None and typed.limit < 1:
        raise ConfigError(f"--limit {typed.limit}: give 1 video or more")
    chosen = {
        "benchmark": typed.benchmark,
        "systems": tuple(
            dict.fromkeys(typed.system or ([] if typed.benchmark == "shapestream" else [SYSTEM]))
        ),
        "engine_dir": typed.engine_dir,
        "out": typed.out or OUT / typed.benchmark,
        "carry": typed.protocol,
        "context": _seconds("--context", typed.context),
        "fps": "source" if typed.fps == "source" else _rate("--fps", typed.fps),
        "max_tokens": typed.max_tokens,
        "limit": typed.limit,
        "threads": typed.threads,
    }
    if typed.benchmark == "shapestream":
        return Options(
            **chosen,
            streams=typed.streams,
            ages=tuple(typed.ages),
            age_in=typed.age_in,
            cache=typed.cache,
        )
    chosen |= {
        "files": tuple(typed.files),
        "videos": tuple(typed.videos or [typed.files[0].parent]),
        "strict": typed.strict,
    }
    if typed.benchmark == "rvs":
        chosen |= {
            "judge": make_judge(typed.judge),
            "image_fps": _rate("--image-fps", typed.image_fps),
        }
        chosen["fps"] = chosen["fps"] or rvs.FPS
    return Options(**chosen)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "vicort-eval",
        description="How often systems answer right, one pass over each video.",
        allow_abbrev=False,
    )
    benchmarks = parser.add_subparsers(
        dest="benchmark", required=True, metavar="BENCHMARK", parser_class=_Parser
    )
    for name, words in BENCHMARKS.items():
        one = benchmarks.add_parser(name, help=words, description=words, allow_abbrev=False)
        if name == "shapestream":
            _add_world(one)
        else:
            _add_data(one)
        if name == "rvs":
            _add_judge(one)
        _add_common(one)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="DATA",
        help="the benchmark's questions, as it publishes them",
    )
    parser.add_argument(
        "--videos",
        action="extend",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="where its videos lie (default: beside DATA)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop if a video is not there; else those are counted and listed",
    )


def _add_judge(parser: argparse.ArgumentParser) -> None:
    words = (
        "who judges open answers: `exact`, or `command CMD`, which reads JSON lines and writes a "
        "verdict for each (default: exact)"
    )
    parser.add_argument(
        "--judge", nargs="+", default=["exact"], metavar=("exact|command", "CMD"), help=words
    )
    parser.add_argument(
        "--image-fps",
        metavar="N",
        help="images a second of folders of frames (default: 1, where frames are named 0.5)",
    )


def _add_world(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--streams",
        type=int,
        default=STREAMS,
        metavar="N",
        help="streams, of 7 questions an age (default: %(default)s)",
    )
    parser.add_argument(
        "--ages",
        type=int,
        nargs="+",
        default=AGES,
        metavar="N",
        help=f"default: {' '.join(map(str, AGES))}",
    )
    parser.add_argument(
        "--age-in",
        choices=AGE_UNITS,
        default="units",
        help="what ages count (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        metavar="DIR",
        help="where its video files are kept (default: %(default)s)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    words = (
        f"a name or a YAML file; may be repeated (default: {SYSTEM}; shapestream: all there are)"
    )
    parser.add_argument("--system", action="append", metavar="NAME|FILE", help=words)
    parser.add_argument(
        "--engine-dir", type=Path, metavar="DIR", help="engine set (default: the tiny model's)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"record and report; a record is gone on with (default: {OUT}/BENCHMARK)",
    )
    parser.add_argument(
        "--protocol",
        choices=CARRIES,
        default="state",
        help=(
            "state: one session over a video; restart: one for each question (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--context",
        metavar="SECONDS",
        help="with restart: only so much before a question is seen (StreamingBench: 60)",
    )
    parser.add_argument(
        "--fps",
        metavar="N|source",
        help="frames a second that are taken (default: as the model was trained; rvs: 0.5)",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="of an answer (default: 64; rvs: 256)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first videos")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="CPU threads a stage (default: %(default)s)",
    )


def _rate(option: str, text: str | None) -> Fraction | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9}|/\d{1,9})?", text) or re.fullmatch(r".*/0+", text):
        raise ConfigError(
            f"{option} {text} is no rate: give a number above 0 as 2, 0.5 or 30000/1001"
        )
    return as_rate(Fraction(text))


def _seconds(option: str, text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{option} {text} is no time: give a number of seconds above 0")
    return Fraction(text)
