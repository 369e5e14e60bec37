"""The command line of vicort-run: it is parsed and checked here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from vicort.runtime.alerts.alert_file import load_alerts
from vicort.runtime.change_asker import check_shows_changes
from vicort.runtime.cli.alert_options import (
    add_alert_options,
    check_needs_alerts,
    check_no_conflict,
    names_alerts,
    sources_of,
)
from vicort.runtime.cli.answer_form import read_form
from vicort.runtime.cli.engine_options import (
    SHOW_SYSTEM,
    add_engine_options,
    check_rates,
    preset_defaults,
    read_budget,
    read_threads,
    with_settings,
)
from vicort.runtime.cli.live_options import add_live_options, read_limits, read_patience
from vicort.runtime.cli.output_options import add_output_options, check_output
from vicort.runtime.cli.question_options import (
    add_question_options,
    read_asked,
    read_at_changes,
    read_recurring,
)
from vicort.runtime.cli.run_options import Options
from vicort.runtime.cli.sampling_options import add_sampling_options, read_sampling
from vicort.runtime.cli.video_options import add_video_options, check_video_options
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.errors import ConfigError
from vicort.runtime.log_options import add_log_options
from vicort.runtime.shell_completion import add_completion_option
from vicort.runtime.sources.images import grouped
from vicort.runtime.sources.opening import FORMS, STDIN


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
    sampling = read_sampling(typed)
    form = read_form(typed)
    defaults = preset_defaults(typed)
    check_output(typed)
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
    check_video_options(typed)
    options = Options(
        sources=tuple(typed.sources),
        alerts=alerts,
        streams=streams,
        deliver=typed.deliver,
        engine_dir=typed.engine_dir,
        verify_engines=typed.verify_engines,
        system_prompt=typed.system_prompt,
        device_mb=read_budget("--memory", typed.memory, least=1),
        host_mb=read_budget("--host-memory", typed.host_memory, least=0),
        threads=read_threads(typed.threads),
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
        patience=read_patience(typed),
        limits=read_limits(typed),
        questions=read_asked(typed, sampling, form),
        recurring=read_recurring(typed, sampling, form),
        at_changes=read_at_changes(typed, sampling, form),
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
        **defaults | with_settings(defaults["system"], typed.set),
    )
    check_rates(options, typed.set)
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
    add_engine_options(parser)
    add_live_options(parser.add_argument_group("live sources"))
    add_video_options(parser.add_argument_group("video"))
    add_question_options(parser.add_argument_group("questions"))
    add_alert_options(parser.add_argument_group("alerts"))
    add_sampling_options(parser.add_argument_group("answers"))
    add_output_options(parser.add_argument_group("output"))
    add_log_options(parser)
    add_completion_option(parser)
    return parser
