"""The command line of vicort-eval."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vicort.benchmarks.evaluation import (
    etbench,
    held_out,
    ovo_bench,
    rvs,
    streambench,
    videomme,
    world_choices,
)
from vicort.benchmarks.evaluation.alert_arguments import (
    ASK_EVERY,
    HOURS,
    VALIDATION_HOURS,
    WINDOW,
    add_alert_options,
    alert_fields,
)
from vicort.benchmarks.evaluation.eval_numbers import rate_of, seconds_of
from vicort.benchmarks.evaluation.judge import ExactJudge, Judge, make_judge
from vicort.benchmarks.evaluation.shapestream import AGE_UNITS, AGES, CACHE, STREAMS, AgeIn
from vicort.benchmarks.evaluation.watching import CARRIES, Carry
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.system import DEFAULT_SYSTEM
from vicort.runtime.shell_completion import add_completion_option

BENCHMARKS = {
    "streamingbench": "StreamingBench: JSON files, or Real_Time_Visual_Understanding.csv",
    "ovo-bench": "OVO-Bench: ovo_bench_new.json and the source videos, uncut",
    "rvs": "RVS-Ego and RVS-Movie: test_qa_ego4d.json, test_qa_movienet.json",
    "streambench": "StreamBench v0.3: streaming_bench_v0.3.json",
    "etbench": "E.T. Bench, the tasks that ask for times: etbench_txt_v1.0.json",
    "videomme": "Video-MME without subtitles, asked at the end of each video: JSON",
    "shapestream": "the synthetic world of the embedded model: accuracy by the age of the event",
    "calibration": "whether answers are as often right as the probabilities of their choices say, "
    "in the synthetic world or in answers of yours; fits a temperature",
    "alerts": "standing alerts over hours of the synthetic world: right, in time, and false ones",
}
JUDGED = ("rvs", "streambench")  # whose answers are open
FPS = {
    "rvs": rvs.FPS,
    "streambench": streambench.FPS,
    "etbench": etbench.FPS,
    "videomme": videomme.FPS,
}
OUT = Path("build/eval")
FIXED, OWN = SAMPLINGS = ("fixed", "own")
# default, as of vicort-run; of shapestream all systems


@dataclass(frozen=True)
class EvalOptions:
    """A checked command line."""

    benchmark: str
    files: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    systems: tuple[str, ...] = (DEFAULT_SYSTEM,)  # none = all
    engine_dir: Path | None = None  # None = the tiny model's
    out: Path = OUT
    carry: Carry = "state"
    context: Fraction | None = None  # seconds of video before a question; None = all
    # sampled frames a second; None = as the model was trained
    fps: Fraction | Literal["source"] | None = None
    own_sampling: bool = False  # frames as the benchmark's loader takes them, instead of fps
    max_tokens: int | None = None  # of an answer; None = as the benchmark does
    limit: int | None = None  # videos
    threads: int = 1
    strict: bool = False
    judge: Judge = ExactJudge()  # noqa: RUF009 (has no state)
    image_fps: Fraction | None = None
    predictions: tuple[Path, ...] = ()  # result files of OVO-Bench, scored instead of a run
    tasks: tuple[str, ...] | None = None  # of OVO-Bench; None = all
    sources: tuple[str, ...] | None = None  # data sets of E.T. Bench; None = all
    streams: int = STREAMS
    ages: tuple[int, ...] = AGES
    age_in: AgeIn = "units"
    cache: Path = CACHE
    held_out: bool = False
    answers: tuple[Path, ...] = ()  # of the user, calibrated instead of a run
    store: bool = False  # whether the temperature is written to the engine set
    hours: int = HOURS  # of streams of alerts
    validation_hours: int = VALIDATION_HOURS
    seed: int = 0
    ask_every: Fraction = ASK_EVERY  # seconds
    window: Fraction = WINDOW  # seconds


def parse_options(arguments: Sequence[str] | None = None) -> EvalOptions:
    """Parse and check, without loading anything heavy. Raises ConfigError; leaves with SystemExit
    after --help."""
    typed = _parser().parse_args(arguments)
    if typed.benchmark == "alerts":
        return EvalOptions(typed.benchmark, **alert_fields(typed, OUT))
    if getattr(typed, "predictions", None):
        _check_no_run(typed, "--predictions are scored")
    if getattr(typed, "answers", None):
        _check_no_run(typed, "--answers are calibrated", allowed=("engine_dir",))
    if typed.context is not None and typed.protocol != "restart":
        raise ConfigError(
            f"--context {typed.context} cuts the video for each question: it needs --protocol "
            "restart"
        )
    if getattr(typed, "sampling", FIXED) == OWN:
        _check_own_sampling(typed)
    if typed.limit is not None and typed.limit < 1:
        raise ConfigError(f"--limit {typed.limit}: give 1 video or more")
    chosen = {
        "benchmark": typed.benchmark,
        "systems": tuple(
            dict.fromkeys(typed.system or ([] if _all_systems(typed) else [DEFAULT_SYSTEM]))
        ),
        "engine_dir": typed.engine_dir,
        "out": typed.out or OUT / typed.benchmark,
        "carry": typed.protocol,
        "context": seconds_of("--context", typed.context),
        "fps": "source" if typed.fps == "source" else rate_of("--fps", typed.fps),
        "max_tokens": typed.max_tokens,
        "limit": typed.limit,
        "threads": typed.threads,
    }
    if typed.benchmark == "shapestream":
        return EvalOptions(**_world(typed, chosen))
    if typed.benchmark == "calibration":
        return EvalOptions(**_calibration(typed, chosen))
    chosen |= {
        "files": tuple(typed.files),
        "videos": tuple(typed.videos or [typed.files[0].parent]),
        "strict": typed.strict,
        "own_sampling": typed.sampling == OWN,
    }
    chosen["fps"] = chosen["fps"] or FPS.get(typed.benchmark)
    if typed.benchmark in JUDGED:
        chosen["judge"] = make_judge(typed.judge)
    if typed.benchmark == "rvs":
        chosen["image_fps"] = rate_of("--image-fps", typed.image_fps)
    if typed.benchmark == "ovo-bench":
        chosen["predictions"] = tuple(typed.predictions or ())
        if typed.task:
            chosen["tasks"] = tuple(dict.fromkeys(typed.task))
    if typed.benchmark == "etbench" and typed.source:
        chosen["sources"] = tuple(dict.fromkeys(typed.source))
    return EvalOptions(**chosen)


def _check_own_sampling(typed: argparse.Namespace) -> None:
    if typed.protocol != "restart":
        raise ConfigError(
            "--sampling own chooses other frames for each question: it needs --protocol restart"
        )
    if typed.fps is not None:
        raise ConfigError(f"--sampling own and --fps {typed.fps} exclude each other: leave one out")


def _check_no_run(typed: argparse.Namespace, why: str, allowed: Collection[str] = ()) -> None:
    """Raises ConfigError for an option that says how a model runs."""
    for name, default in (
        ("system", None),
        ("engine_dir", None),
        ("videos", None),
        ("protocol", "state"),
        ("context", None),
        ("sampling", FIXED),
        ("fps", None),
        ("max_tokens", None),
        ("limit", None),
        ("threads", 1),
        ("strict", False),
        ("streams", None),
    ):
        if name not in allowed and getattr(typed, name, default) != default:
            raise ConfigError(
                f"{why} and no model runs, so --{name.replace('_', '-')} has no meaning: leave one "
                "of them out"
            )


def _all_systems(typed: argparse.Namespace) -> bool:
    return typed.benchmark == "shapestream" and not typed.held_out


def _world(typed: argparse.Namespace, chosen: dict[str, Any]) -> dict[str, Any]:
    if typed.held_out and (typed.ages or typed.age_in):
        option = "--ages" if typed.ages else "--age-in"
        raise ConfigError(f"{option} is not for --held-out: leave one of them out")
    default = held_out.STREAMS if typed.held_out else STREAMS
    out = {"out": OUT / "shapestream-held-out"} if typed.held_out and not typed.out else {}
    return {
        **chosen,
        **out,
        "streams": default if typed.streams is None else typed.streams,
        "ages": tuple(typed.ages or AGES),
        "age_in": typed.age_in or "units",
        "cache": typed.cache,
        "held_out": typed.held_out,
    }


def _calibration(typed: argparse.Namespace, chosen: dict[str, Any]) -> dict[str, Any]:
    if typed.store and len(chosen["systems"]) > 1:
        raise ConfigError(
            f"--store and {len(chosen['systems'])} systems: an engine set has one temperature, so "
            "give one --system"
        )
    return {
        **chosen,
        "streams": world_choices.STREAMS if typed.streams is None else typed.streams,
        "cache": typed.cache,
        "answers": tuple(typed.answers or ()),
        "store": typed.store,
    }


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "vicort-eval",
        description="Accuracy of memory systems on benchmarks, in one pass over each video.",
        allow_abbrev=False,
    )
    benchmarks = parser.add_subparsers(
        dest="benchmark", required=True, metavar="BENCHMARK", parser_class=ArgumentParser
    )
    for name, words in BENCHMARKS.items():
        one = benchmarks.add_parser(name, help=words, description=words, allow_abbrev=False)
        if name == "alerts":
            add_alert_options(one, OUT)
            continue
        if name == "shapestream":
            _add_world(one)
        elif name == "calibration":
            _add_calibration(one)
        else:
            _add_data(one)
        if name in JUDGED:
            _add_judge(one)
        if name == "rvs":
            _add_image_fps(one)
        if name == "ovo-bench":
            words = "score the benchmark's result files, and run no model"
            one.add_argument("--predictions", nargs="+", type=Path, metavar="FILE", help=words)
            words = "only this task; may be repeated: REC, SSR and CRR wait (default: all)"
            tasks = (*ovo_bench.CHOICES, *ovo_bench.FORWARD)
            one.add_argument("--task", action="append", choices=tasks, help=words)
        if name == "etbench":
            words = "only this data set, such as charades_sta; may be repeated (default: all)"
            one.add_argument("--source", action="append", metavar="NAME", help=words)
        _add_common(one)
    add_completion_option(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    words = "the benchmark's questions, as published"
    add("files", nargs="+", type=Path, metavar="DATA", help=words)
    words = "folders of its videos (default: that of DATA)"
    add("--videos", action="extend", nargs="+", type=Path, metavar="DIR", help=words)
    words = (
        "fixed: frames at the rate of --fps; own: as the benchmark's public loader takes them for "
        "each question, with --protocol restart (default: %(default)s)"
    )
    add("--sampling", choices=SAMPLINGS, default=FIXED, help=words)
    add("--strict", action="store_true", help="stop if a video is missing (default: a warning)")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    words = (
        "judge of open answers: `exact`, or `command CMD`, a program that reads JSON lines and "
        "writes a verdict for each (default: exact)"
    )
    add("--judge", nargs="+", default=["exact"], metavar=("exact|command", "CMD"), help=words)


def _add_image_fps(parser: argparse.ArgumentParser) -> None:
    words = (
        "images a second of folders of frames and of .npy files (default: 1, where frames are "
        "named 0.5)"
    )
    parser.add_argument("--image-fps", metavar="N", help=words)


def _add_world(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    words = "looks that training never saw, and every kind of question, instead of ages"
    add("--held-out", action="store_true", help=words)
    words = (
        f"number of streams, with 7 questions for each age (default: {STREAMS}); of each kind of "
        f"file with --held-out (default: {held_out.STREAMS})"
    )
    add("--streams", type=int, metavar="N", help=words)
    words = f"ages of the events (default: {' '.join(map(str, AGES))})"
    add("--ages", type=int, nargs="+", metavar="N", help=words)
    words = "unit of the ages: units or chunks (default: units)"
    add("--age-in", choices=AGE_UNITS, help=words)
    words = "folder for its video files (default: %(default)s)"
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=words)


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    words = (
        "JSON lines with `choices` and `truth`, and `split` (fit or report), `stream` and `kind` "
        "where they are known, such as answer events to which `truth` was added; no model runs"
    )
    add("--answers", nargs="+", type=Path, metavar="FILE", help=words)
    words = (
        "write the temperature to the engine set, whose sessions then give the probabilities of "
        "choices at it"
    )
    add("--store", action="store_true", help=words)
    words = "streams of each kind of file in each of the four parts (default: %(default)s)"
    add("--streams", type=int, metavar="N", help=words % {"default": world_choices.STREAMS})
    words = "folder for its video files (default: %(default)s)"
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=words)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    words = f"memory system: a name or a YAML file; may be repeated (default: {DEFAULT_SYSTEM}; "
    add("--system", action="append", metavar="NAME|FILE", help=words + "shapestream: all)")
    add("--engine-dir", type=Path, metavar="DIR", help="engine set (default: the tiny model's)")
    words = f"folder of record and report; a record is resumed (default: {OUT}/BENCHMARK)"
    add("--out", type=Path, metavar="DIR", help=words)
    words = "state: a session for each video; restart: for each question (default: %(default)s)"
    add("--protocol", choices=CARRIES, default="state", help=words)
    words = "with restart: seconds of video before a question (StreamingBench: 60)"
    add("--context", metavar="SECONDS", help=words)
    words = (
        "sampled frames a second (default: as the model was trained; rvs: 0.5; streambench, "
        "etbench, videomme: 1)"
    )
    add("--fps", metavar="N|source", help=words)
    words = "maximum tokens of an answer (default: 128; rvs: 256; shapestream: 64)"
    add("--max-tokens", type=int, metavar="N", help=words)
    add("--limit", type=int, metavar="N", help="only the first N videos")
    words = "CPU threads for each stage (default: %(default)s)"
    add("--threads", type=int, default=1, metavar="N", help=words)
