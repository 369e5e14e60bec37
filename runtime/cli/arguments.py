"""The command line of vicort-run: what may be typed, and what it comes to."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Literal, NoReturn

from vicort.runtime.cli.questions import checked_words, parse_ask, read_questions, with_ids
from vicort.runtime.cli.recurring import UNTIL_SECONDS, RecurringQuestion
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.policies.system import load_system
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.opening import FORMS, IMAGE_FPS
from vicort.runtime.sources.sampler import as_rate

STDIN = "-"
MOST_SECONDS = 86_400  # of a time-out
MOST = 2**31 - 1  # FFmpeg's own limit of pixels


@dataclass(frozen=True)
class Options:
    """A checked command line."""

    sources: tuple[str, ...]
    engine_dir: Path | None = None  # None = the tiny model's
    system: str = "vicostream"
    overlap: bool = True
    # frames a second; None = as the model was trained
    fps: Fraction | Literal["source"] | None = None
    stream: int | None = None
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    realtime: bool = False
    live: bool | None = None  # None = as the source is
    on_lag: Literal["wait", "drop-oldest"] | None = None  # None = wait, unless live
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    patience: Patience = Patience()  # noqa: RUF009 (frozen)
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    questions: tuple[Question, ...] = ()
    standing: tuple[RecurringQuestion, ...] = ()
    typed_questions: bool = False  # whether more come on stdin
    serve_socket: Path | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    format: str = "text"
    stats: bool = False
    trace: Path | None = None

    @property
    def image_fps(self) -> Fraction:
        """Images a second of a folder: the rate at which frames are taken, so that every image is
        seen."""
        return self.fps if isinstance(self.fps, Fraction) else Fraction(IMAGE_FPS)


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Parse and check, without loading anything heavy. Raises VicortError; leaves with SystemExit
    after --help and --version."""
    typed = _parser().parse_args(arguments)
    sampling = Sampling(
        temperature=typed.temperature,
        top_p=typed.top_p,
        top_k=typed.top_k,
        seed=typed.seed,
        max_tokens=typed.max_tokens,
    )
    TokenChoice(sampling)
    load_system(typed.system)
    _check_output(typed)
    if str(typed.questions) == STDIN and STDIN in typed.sources:
        raise ConfigError(
            "stdin cannot be the source and the questions too: give one of them as a file, or "
            "use --serve-socket"
        )
    if typed.stream is not None and typed.stream < 0:
        raise ConfigError(
            f"--stream {typed.stream} is no index: give 0 or more, as `ffprobe` numbers them"
        )
    return Options(
        sources=tuple(typed.sources),
        engine_dir=typed.engine_dir,
        system=typed.system,
        overlap=not typed.sequential,
        fps=_fps(typed.fps),
        stream=typed.stream,
        decode=typed.decode,
        realtime=typed.realtime,
        live=True if typed.live else False if typed.file else None,
        on_lag=typed.on_lag or ("drop-oldest" if typed.live else "wait" if typed.file else None),
        rtsp_transport=typed.rtsp_transport,
        patience=_patience(typed),
        limits=_limits(typed),
        questions=_questions(typed, sampling),
        standing=_standing(typed, sampling),
        typed_questions=str(typed.questions) == STDIN,
        serve_socket=typed.serve_socket,
        sampling=sampling,
        format=typed.format,
        stats=typed.stats,
        trace=typed.trace,
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see `vicort-run --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "vicort-run",
        description="Watch a video, and answer questions about it while it comes in.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help=f"{FORMS}; several are watched at the same time",
    )
    parser.add_argument(
        "--version", action="version", version=f"vicort {metadata.version('vicort')}"
    )
    parser.add_argument(
        "--engine-dir",
        type=Path,
        metavar="DIR",
        help="engine set (default: the tiny model's, built if there is none)",
    )
    parser.add_argument(
        "--system",
        default=Options.system,
        metavar="NAME|FILE",
        help="memory system: a name or a YAML file (default: %(default)s)",
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="run one stage after another, for debugging; answers are the same",
    )
    _add_live(parser.add_argument_group("live sources"))
    _add_video(parser.add_argument_group("video"))
    _add_questions(parser.add_argument_group("questions"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=tuple(WRITERS),
        default=Options.format,
        help="format of the events on stdout (default: %(default)s)",
    )
    output.add_argument(
        "--stats", action="store_true", help="also print an event for each chunk (text and jsonl)"
    )
    output.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.json",
        help="write a timeline for https://ui.perfetto.dev",
    )
    return parser


def _add_video(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fps",
        metavar="N|source",
        help="frames per second to use, or every frame (default: the model's training rate)",
    )
    group.add_argument(
        "--stream",
        type=int,
        metavar="N",
        help="index of the video stream in its file (default: the first)",
    )
    group.add_argument(
        "--decode",
        choices=("auto", "cpu", "gpu"),
        default=Options.decode,
        help="auto: NVDEC if available, for engines on an NVIDIA GPU",
    )
    group.add_argument("--realtime", action="store_true", help="play a file by its timestamps")
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--live",
        action="store_true",
        help="live source: drop frames rather than wait; implies --on-lag drop-oldest",
    )
    kind.add_argument(
        "--file", action="store_true", help="the source can wait; implies --on-lag wait (default)"
    )
    group.add_argument(
        "--on-lag",
        choices=("wait", "drop-oldest"),
        help="wait, or drop the oldest frames, when they come too fast",
    )


def _add_live(group: argparse._ArgumentGroup) -> None:
    patience, limits = Patience(), Limits()
    group.add_argument(
        "--rtsp-transport",
        choices=("tcp", "udp"),
        default=Options.rtsp_transport,
        help="transport of RTSP streams (default: %(default)s)",
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
        help="timeout for reading (default: 10, or 30 for HLS)",
    )
    group.add_argument(
        "--reconnect",
        type=int,
        metavar="N",
        help="reconnection attempts in a row before giving up (default: no limit)",
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        default=limits.pixels,
        metavar="N",
        help="maximum pixels of a frame (default: %(default)s)",
    )
    group.add_argument(
        "--max-fps",
        type=int,
        default=limits.fps,
        metavar="N",
        help="maximum frame rate that a source may declare (default: %(default)s)",
    )


def _add_questions(group: argparse._ArgumentGroup) -> None:
    default = Sampling()
    group.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar='"[@SECONDS] QUESTION"',
        help="ask at a time, or at the end; repeatable",
    )
    group.add_argument(
        "--questions",
        type=Path,
        metavar="FILE.jsonl|-",
        help=(
            'read questions, one line each: {"at": seconds|null, "question": "…", "id": "…"}; '
            "- reads stdin as lines arrive"
        ),
    )
    group.add_argument(
        "--every",
        action="append",
        default=[],
        nargs=2,
        metavar=("SECONDS", "QUESTION"),
        help="ask at this interval; repeatable",
    )
    group.add_argument(
        "--until",
        metavar="QUESTION",
        help=f"ask every {UNTIL_SECONDS} s, and end the run once the answer is yes",
    )
    group.add_argument(
        "--serve-socket",
        type=Path,
        metavar="PATH",
        help="accept questions on a Unix socket, as JSON lines",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        help="sampling temperature; 0 = greedy (default)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=default.top_p,
        help="nucleus sampling: total probability to sample from (default: %(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=default.top_k,
        help="number of most likely tokens to sample from; 0 = all (default)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="random seed for sampling (default: %(default)s)",
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        default=default.max_tokens,
        help="maximum tokens of an answer (default: %(default)s)",
    )


def _fps(text: str | None) -> Fraction | Literal["source"] | None:
    if text is None:
        return None
    if text == "source":
        return "source"
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9}|/\d{1,9})?", text) or re.fullmatch(r".*/0+", text):
        raise ConfigError(
            f"--fps {text} is no rate: give a number above 0 as 2, 29.97 or 30000/1001, or "
            "`source` for every frame"
        )
    return as_rate(Fraction(text))


def _patience(typed: argparse.Namespace) -> Patience:
    for name in ("open_timeout", "read_timeout"):
        seconds = getattr(typed, name)
        if seconds is not None and not 0 < seconds <= MOST_SECONDS:
            raise ConfigError(
                f"--{name.replace('_', '-')} {seconds:g}: give seconds above 0, and "
                f"{MOST_SECONDS} at most, as 10"
            )
    if typed.reconnect is not None and typed.reconnect < 0:
        raise ConfigError(
            f"--reconnect {typed.reconnect}: give 0 or more attempts, or leave it out to try "
            "without end"
        )
    return Patience(typed.open_timeout, typed.read_timeout, attempts=typed.reconnect)


def _limits(typed: argparse.Namespace) -> Limits:
    for name, value in (("pixels", typed.max_pixels), ("fps", typed.max_fps)):
        if not 1 <= value <= MOST:
            raise ConfigError(f"--max-{name} {value}: give 1 or more, and {MOST} at most")
    return Limits(typed.max_pixels, typed.max_fps)


def _questions(typed: argparse.Namespace, sampling: Sampling) -> tuple[Question, ...]:
    asked = [parse_ask(text) for text in typed.ask]
    if typed.questions and str(typed.questions) != STDIN:
        asked += read_questions(typed.questions)
    return with_ids(
        [Question(item.text, item.at, item.id, item.conversation, sampling) for item in asked]
    )


def _standing(typed: argparse.Namespace, sampling: Sampling) -> tuple[RecurringQuestion, ...]:
    found = []
    for place, (seconds, text) in enumerate(typed.every, 1):
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", seconds) or not Fraction(seconds):
            raise ConfigError(
                f"--every {seconds} {text!r}: give a number of seconds above 0 first, as "
                f"`--every 10 {text!r}`"
            )
        found.append(
            RecurringQuestion(
                Question(_words(text, "--every"), None, f"every{place}", None, sampling),
                Fraction(seconds),
            )
        )
    if typed.until is not None:
        found.append(
            RecurringQuestion(
                Question(_words(typed.until, "--until"), None, "until", None, sampling),
                UNTIL_SECONDS,
                until_yes=True,
            )
        )
    return tuple(found)


def _words(text: str, flag: str) -> str:
    if not text.strip():
        raise QuestionError(
            f"{flag} {text!r} holds no question: give one as `{flag} ... 'is there a circle?'`"
        )
    return checked_words(text.strip(), flag)


def _check_output(typed: argparse.Namespace) -> None:
    if len(typed.sources) > 1 and not WRITERS[typed.format].tells_sources:
        shown = " or ".join(name for name, writer in WRITERS.items() if writer.tells_sources)
        raise ConfigError(
            f"--format {typed.format} is for one source, and there are {len(typed.sources)}: use "
            f"{shown}"
        )
    if typed.stats and not WRITERS[typed.format].shows_stats:
        shown = " or ".join(name for name, writer in WRITERS.items() if writer.shows_stats)
        raise ConfigError(f"--stats has no place in --format {typed.format}: use {shown}")
    if typed.trace is not None and (
        typed.trace.is_dir() or not typed.trace.absolute().parent.is_dir()
    ):
        raise ConfigError(
            f"--trace {typed.trace} cannot be a file there: give the name of a file in a folder "
            "that exists"
        )
