"""The command line of vicort-run: its options, and the checks on their values."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from vicort.runtime.alerts.alert_file import AlertFile, load_alerts
from vicort.runtime.change_asker import SHOWS_CHANGES, check_shows_changes
from vicort.runtime.cli.alert_options import (
    add_alert_options,
    check_needs_alerts,
    check_no_conflict,
    names_alerts,
    sources_of,
)
from vicort.runtime.cli.answer_form import AnswerForm, add_form_options, read_form
from vicort.runtime.cli.moments import Moment, parse_moment
from vicort.runtime.cli.presets import PRESETS, preset_text
from vicort.runtime.cli.questions import (
    checked_words,
    limited,
    parse_ask,
    read_questions,
    with_ids,
)
from vicort.runtime.cli.recurring import (
    UNTIL_PROBABILITY,
    UNTIL_SECONDS,
    RecurringQuestion,
)
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.command_line import ArgumentParser, parse_megabytes, parse_rate
from vicort.runtime.core import Freshness, Question, Sampling
from vicort.runtime.devices.machine_cores import checked_threads
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.log_options import add_log_options
from vicort.runtime.memory.budget import SHARE
from vicort.runtime.policies.system import DEFAULT_SYSTEM, MAX_MB, System, load_system, sets
from vicort.runtime.safe_text import shown
from vicort.runtime.shell_completion import add_completion_option
from vicort.runtime.sources.images import grouped
from vicort.runtime.sources.input_format import check_input_format
from vicort.runtime.sources.limits import FFMPEG_INT_MAX, Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.opening import FORMS, IMAGE_FPS, Decode, Transport
from vicort.runtime.written_files import check_target

STDIN = "-"
SHOW_SYSTEM = "--show-system"
MAX_TIMEOUT = 86_400  # seconds
MAX_ATTEMPTS = 10**9  # a thousand years, at most one in 30 s


@dataclass(frozen=True)
class Options:
    """A checked command line."""

    sources: tuple[str | tuple[str, ...], ...]  # a tuple of images is one source
    alerts: AlertFile | None = None
    streams: tuple[str, ...] = ()  # of the alert file, one for each source
    deliver: bool = False  # alerts of recorded sources, too
    engine_dir: Path | None = None  # None = the engines of the tiny model
    verify_engines: bool = False
    system: str | System = DEFAULT_SYSTEM
    preset: str | None = None  # what the preset sets, and what options set instead
    system_prompt: str | None = None  # None = the chat template's own
    device_mb: float | None = None  # None = as the system says
    host_mb: float | None = None
    memory_share: float = SHARE  # of the machine's memory, for automatic budgets
    threads: int | None = None  # None = all that the process may use
    overlap: bool = True
    # frames per second; None = the rate that the model was trained with
    fps: Fraction | Literal["source"] | None = None
    stream: int | None = None
    input_format: str | None = None  # None = found out from the bytes
    decode: Decode = "auto"
    realtime: bool = False
    live: bool | None = None  # None = decided by the kind of source
    on_lag: Literal["wait", "drop-oldest"] | None = None  # None = wait, and warn if live
    freshness: Freshness = "complete"
    rtsp_transport: Transport = "tcp"
    isolate: bool = True
    patience: Patience = Patience()  # noqa: RUF009 (frozen)
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    questions: tuple[Question, ...] = ()
    recurring: tuple[RecurringQuestion, ...] = ()
    at_changes: tuple[Question, ...] = ()
    typed_questions: bool = False  # whether stdin brings more questions
    serve_socket: Path | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    form: AnswerForm = AnswerForm()  # noqa: RUF009 (frozen)
    dry_run: bool = False
    show_system: bool = False
    success_on_sigterm: bool = False
    format: str = "text"
    stats: bool = False
    trace: Path | None = None
    render: Path | None = None
    render_font: Path | None = None  # None = one of the system that has the letters
    log_level: str | None = None  # None = no log

    @property
    def chosen_system(self) -> System:
        return self.system if isinstance(self.system, System) else load_system(self.system)

    @property
    def sessions(self) -> int:
        """How many share the memory: one for each source, or for each zone that an alert names."""
        if self.alerts is None:
            return len(self.sources)
        alerts = self.alerts
        return sum(len({each.zone for each in alerts.of_stream(name)}) for name in self.streams)

    def of_sources(self) -> list[Options]:
        """The options of each source."""
        return [self.of_source(number) for number in range(len(self.sources))]

    def of_source(self, number: int) -> Options:
        """The same, with what the alert file says about this stream."""
        if self.alerts is None:
            return self
        entry = self.alerts.streams[self.streams[number]]
        fps = self.fps if entry.fps is None else entry.rate
        return replace(self, system=entry.system or self.system, fps=fps)

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `open_source` and `open_sound` that are the same however often a source is
        opened."""
        return {
            "stream": self.stream,
            "input_format": self.input_format,
            "patience": self.patience,
            "limits": self.limits,
            "isolate": self.isolate,
        }

    @property
    def image_fps(self) -> Fraction:
        """Images per second of a folder. It equals the sampling rate, so that no image is
        skipped."""
        return self.fps if isinstance(self.fps, Fraction) else Fraction(IMAGE_FPS)


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Parse and check the command line without loading engines.

    Raises VicortError, and SystemExit after --help and --version.
    """
    typed = _parse(sys.argv[1:] if arguments is None else list(arguments))
    alerts = None
    if typed.alerts is not None:
        check_no_conflict(typed)
        alerts = load_alerts(typed.alerts)
        streams, typed.sources = sources_of(alerts, typed.sources)
    else:
        check_needs_alerts(typed)
        streams, typed.sources = (), grouped(typed.sources)
    sampling = Sampling(
        temperature=typed.temperature,
        top_p=typed.top_p,
        top_k=typed.top_k,
        repetition_penalty=typed.repetition_penalty,
        stop=tuple(typed.stop),
        seed=typed.seed,
        max_tokens=typed.max_tokens,
    )
    TokenChoice(sampling)
    form = read_form(typed)
    defaults = _preset_defaults(typed)
    _check_output(typed)
    if typed.success_on_sigterm and typed.until:
        raise ConfigError(
            "--success-on-sigterm and --until both exit with 0, which would not tell a yes from a "
            "stop: leave one of them out"
        )
    if str(typed.questions) == STDIN and STDIN in typed.sources:
        raise ConfigError(
            "stdin cannot bring both the video and the questions: give one of them as a file, or "
            "use --serve-socket"
        )
    if typed.stream is not None and not 0 <= typed.stream <= FFMPEG_INT_MAX:
        raise ConfigError(
            f"--stream {shown(typed.stream)} is not an index: give 0 or more, as `ffprobe` numbers "
            "streams"
        )
    if typed.input_format is not None:
        check_input_format(typed.input_format)
    options = Options(
        sources=tuple(typed.sources),
        alerts=alerts,
        streams=streams,
        deliver=typed.deliver,
        engine_dir=typed.engine_dir,
        verify_engines=typed.verify_engines,
        system_prompt=typed.system_prompt,
        device_mb=_budget("--memory", typed.memory, least=1),
        host_mb=_budget("--host-memory", typed.host_memory, least=0),
        threads=_threads(typed.threads),
        overlap=not typed.sequential,
        stream=typed.stream,
        input_format=typed.input_format,
        decode=typed.decode,
        realtime=typed.realtime,
        live=True if typed.live else False if typed.file else None,
        on_lag=typed.on_lag or ("drop-oldest" if typed.live else "wait" if typed.file else None),
        freshness=typed.freshness,
        rtsp_transport=typed.rtsp_transport,
        isolate=not typed.in_process,
        patience=_patience(typed),
        limits=_limits(typed),
        questions=_questions(typed, sampling, form),
        recurring=_recurring(typed, sampling, form),
        at_changes=_at_changes(typed, sampling, form),
        typed_questions=str(typed.questions) == STDIN,
        serve_socket=typed.serve_socket,
        sampling=sampling,
        form=form,
        dry_run=typed.dry_run,
        show_system=typed.show_system,
        success_on_sigterm=typed.success_on_sigterm,
        format=typed.format,
        stats=typed.stats,
        trace=typed.trace,
        render=typed.render,
        render_font=typed.render_font,
        log_level=typed.log_level,
        **defaults | _with_settings(defaults["system"], typed.set),
    )
    _check_rates(options, typed.set)
    if options.at_changes:
        check_shows_changes(options.chosen_system)
    return options


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Only --show-system needs no source."""
    if not arguments:
        raise ConfigError(
            "no source is given: name a file, a folder of images, a URL, a camera or -, such as "
            "`vicort-run clip.mp4 --ask 'what is there now?'`; `vicort-run --help` lists the rest"
        )
    watches = SHOW_SYSTEM not in arguments
    parser = _parser(takes_sources=watches, alerts=names_alerts(arguments))
    typed, rest = parser.parse_known_args(arguments)
    if unknown := [text for text in rest if watches or text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    typed.sources = typed.sources if watches else []
    return typed


def _parser(takes_sources: bool, alerts: bool = False) -> ArgumentParser:
    parser = ArgumentParser(
        "vicort-run",
        description="Watch a video stream and answer questions about it while it plays.",
        allow_abbrev=False,
    )
    if takes_sources:
        parser.add_argument(
            "sources",
            nargs="*" if alerts else "+",
            metavar="SOURCE",
            help=f"{FORMS}; several sources run at the same time, several images are one source; "
            "with --alerts instead of the file's own: one for every stream, or STREAM=SOURCE",
        )
    parser.add_argument(
        "--version", action="version", version=f"vicort {metadata.version('vicort')}"
    )
    parser.add_argument(
        "--engine-dir",
        type=Path,
        metavar="DIR",
        help="folder of the engine set (default: the tiny model's, built on first use)",
    )
    parser.add_argument(
        "--verify-engines",
        action="store_true",
        help="first compare the engines with what the model computes, which sets for TensorRT "
        "have stored: a compiler may get a graph wrong on one kind of GPU alone",
    )
    parser.add_argument(
        "--system",
        metavar="NAME|FILE",
        help="memory system: a name or a YAML file (default: "
        f"{Options.system}, or that of --preset)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the system, such as --set drop.threshold=0.5; repeatable",
    )
    parser.add_argument(
        SHOW_SYSTEM,
        action="store_true",
        help="print the system as --preset, --set, --memory and --host-memory leave it, as a file "
        "for --system, and end",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="defaults for the frame rate, the system and its share of memory; what is given, also "
        "by --set, wins, and --dry-run shows them (default: none)",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory for pages on the device, which on a CPU is the machine's, of each source, "
        "such as 4GB (default: a share of what there is, as the system says)",
    )
    parser.add_argument(
        "--host-memory",
        metavar="SIZE",
        help="memory for pages that no longer fit there, besides --memory, of systems that move "
        "them to the host (default: a share of the machine's memory)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of each running stage (default: all cores that the process may use)",
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="run one stage after another, for debugging; the answers are the same",
    )
    _add_live(parser.add_argument_group("live sources"))
    _add_video(parser.add_argument_group("video"))
    _add_questions(parser.add_argument_group("questions"))
    add_alert_options(parser.add_argument_group("alerts"))
    _add_sampling(parser.add_argument_group("answers"))
    _add_output(parser.add_argument_group("output"))
    add_log_options(parser)
    add_completion_option(parser)
    return parser


def _add_video(group: argparse._ArgumentGroup) -> None:
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


def _add_live(group: argparse._ArgumentGroup) -> None:
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


def _add_questions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar='"[@SECONDS] QUESTION"',
        help="ask at this stream time, or at the end if no time is given; repeatable",
    )
    group.add_argument(
        "--read-since",
        metavar="TIME",
        help="questions of --ask read nothing that was seen before: seconds of the stream, H:MM:SS "
        "of a file, or of a live source the time of day (10:05) or 2026-11-30T10:05",
    )
    group.add_argument(
        "--read-until",
        metavar="TIME",
        help="questions of --ask read nothing that was seen after, TIME as above",
    )
    group.add_argument(
        "--questions",
        type=Path,
        metavar="FILE.jsonl|-",
        help='read questions from a file with lines of {"at": seconds|null, "question": "…", '
        '"id": "…", "since": TIME, "until": TIME}, or from stdin (-) while the stream runs',
    )
    group.add_argument(
        "--every",
        action="append",
        default=[],
        nargs=2,
        metavar=("SECONDS", "QUESTION"),
        help="ask again every SECONDS of the stream; repeatable",
    )
    group.add_argument(
        "--at-changes",
        action="append",
        default=[],
        metavar="QUESTION",
        help="ask again whenever the scene changes, with a system that drops tokens, such as "
        f"{SHOWS_CHANGES}; `changes` of the system says what a change is; repeatable",
    )
    group.add_argument(
        "--until",
        action="append",
        default=[],
        metavar="QUESTION",
        help=f"ask every {UNTIL_SECONDS} s until the answer is yes, then end the run",
    )
    group.add_argument(
        "--until-probability",
        type=float,
        default=UNTIL_PROBABILITY,
        metavar="P",
        help="probability from 0 to 1 that the model must give its yes to end the run (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--serve-socket",
        type=Path,
        metavar="PATH",
        help="accept questions on a Unix socket, with JSON lines in both directions",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    default = Sampling()
    own = "(default: as the model's generation_config.json says)"
    group.add_argument(
        "--system-prompt",
        metavar="TEXT",
        help="system prompt (default: that of the model's chat template)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"sampling temperature; 0 is greedy decoding {own}",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help=f"sample from the smallest set of tokens with this total probability {own}",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help=f"sample from the K most likely tokens; 0 means all {own}",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="make tokens of the prompt, the question and the answer less likely; 1 changes "
        f"nothing {own}",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this text; repeatable",
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
        help="maximum number of tokens in an answer (default: %(default)s)",
    )
    add_form_options(group)


def _add_output(group: argparse._ArgumentGroup) -> None:
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


def _preset_defaults(typed: argparse.Namespace) -> dict[str, Any]:
    """The fields of Options that a preset may set; what is given wins."""
    fps, system = _fps(typed.fps), typed.system
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


def _with_settings(system: str | System, settings: Sequence[str]) -> dict[str, System]:
    """The field of Options that --set changes."""
    if not settings:
        return {}
    chosen = system if isinstance(system, System) else load_system(system)
    return {"system": chosen.with_settings(settings)}


def _check_rates(options: Options, settings: Sequence[str]) -> None:
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


def _fps(text: str | None) -> Fraction | Literal["source"] | None:
    if text is None:
        return None
    if text == "source":
        return "source"
    return parse_rate(
        "--fps",
        text,
        "give a number above 0, such as 2, 29.97 or 30000/1001, or `source` for every frame",
    )


def _budget(option: str, text: str | None, least: float) -> float | None:
    """MB of 1e6 bytes."""
    if text is None:
        return None
    megabytes = parse_megabytes(option, text)
    if not least <= megabytes <= MAX_MB:
        raise ConfigError(f"{option} {text}: give {least:g}MB to {MAX_MB / 1e6:g}TB, such as 4GB")
    return megabytes


def _threads(threads: int | None) -> int:
    try:
        return checked_threads(threads)
    except ConfigError as error:
        raise ConfigError(f"--threads: {error}") from error


def _patience(typed: argparse.Namespace) -> Patience:
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


def _limits(typed: argparse.Namespace) -> Limits:
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
    megabytes = _budget("--max-decode-memory", typed.max_decode_memory, least=64)
    memory = None if megabytes is None else int(megabytes * 1e6)
    return Limits(typed.max_pixels, typed.max_fps, typed.max_decode_time, memory)


def _questions(
    typed: argparse.Namespace, sampling: Sampling, form: AnswerForm
) -> tuple[Question, ...]:
    first, last = _range(typed)
    asked = [limited(parse_ask(text), first, last, "--ask") for text in typed.ask]
    if typed.questions and str(typed.questions) != STDIN:
        asked += read_questions(typed.questions)
    return with_ids([replace(form.fill(question), sampling=sampling) for question in asked])


def _range(typed: argparse.Namespace) -> tuple[Moment | None, Moment | None]:
    """The part of the stream that the questions of --ask are about."""
    given = {"--read-since": typed.read_since, "--read-until": typed.read_until}
    first, last = (
        None if text is None else parse_moment(text, option) for option, text in given.items()
    )
    if (first is not None or last is not None) and not typed.ask:
        option = next(option for option, text in given.items() if text is not None)
        raise ConfigError(
            f"{option} is about the questions of --ask, and none is given: ask one, or give since "
            "and until with each question of a file or socket"
        )
    return first, last


def _recurring(
    typed: argparse.Namespace, sampling: Sampling, form: AnswerForm
) -> tuple[RecurringQuestion, ...]:
    if not 0 <= typed.until_probability <= 1:
        raise ConfigError(
            f"--until-probability {typed.until_probability:g} is no probability: give 0 (any yes) "
            "to 1"
        )
    found = []
    for number, (seconds, text) in enumerate(typed.every, 1):
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", seconds) or not Fraction(seconds):
            raise ConfigError(
                f"--every {seconds} {text!r}: give a number of seconds above 0 first, such as "
                f"`--every 10 {text!r}`"
            )
        found.append(
            RecurringQuestion(
                form.fill(
                    Question(_words(text, "--every"), None, f"every{number}", None, sampling)
                ),
                Fraction(seconds),
            )
        )
    if len(typed.until) > 1:
        raise ConfigError(
            f"--until is given {len(typed.until)} times: give one question, such as `--until 'is "
            "there a circle or a cross?'`"
        )
    for text in typed.until:
        found.append(
            RecurringQuestion(
                form.fill(Question(_words(text, "--until"), None, "until", None, sampling)),
                UNTIL_SECONDS,
                until_yes=True,
                least=typed.until_probability,
            )
        )
    return tuple(found)


def _at_changes(
    typed: argparse.Namespace, sampling: Sampling, form: AnswerForm
) -> tuple[Question, ...]:
    return tuple(
        form.fill(Question(_words(text, "--at-changes"), None, f"change{number}", None, sampling))
        for number, text in enumerate(typed.at_changes, 1)
    )


def _words(text: str, flag: str) -> str:
    if not text.strip():
        raise QuestionError(
            f"{flag} {text!r} contains no question: give one, such as "
            f"`{flag} ... 'is there a circle?'`"
        )
    return checked_words(text.strip(), flag)


def _check_output(typed: argparse.Namespace) -> None:
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
