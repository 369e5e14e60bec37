"""The options of vicort-run that are about alerts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vicort.runtime.alerts.alert_file import AlertFile
from vicort.runtime.errors import ConfigError
from vicort.runtime.redact import redact_url
from vicort.runtime.sources.images import grouped, name_of
from vicort.runtime.sources.opening import STDIN

ALERTS = "--alerts"
FORMATS = ("text", "jsonl")  # that show alerts


def add_alert_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        ALERTS,
        type=Path,
        metavar="FILE.yaml",
        help="watch for what this file describes: its streams are read, or the SOURCE given "
        "instead, and each change of an alert is an event (docs/alerts.md)",
    )
    group.add_argument(
        "--deliver",
        action="store_true",
        help="send alerts of recorded sources to the targets of --alerts, too, as those of live "
        "sources are",
    )


def names_alerts(arguments: Sequence[str]) -> bool:
    """Whether the command line names an alert file, so that it may name no source."""
    return any(each == ALERTS or each.startswith(f"{ALERTS}=") for each in arguments)


def check_no_conflict(typed: argparse.Namespace) -> None:
    """Raises ConfigError for options that --alerts cannot have beside it."""
    others = {
        "--until": typed.until,
        "--every": typed.every,
        "--at-changes": typed.at_changes,
        "--render": typed.render,
    }
    if other := next((option for option, value in others.items() if value), None):
        raise ConfigError(
            f"{ALERTS} and {other} cannot run together: leave one of them out; an alert file asks "
            "again and again by itself"
        )
    if typed.format not in FORMATS:
        raise ConfigError(
            f"--format {typed.format} has no alerts: use {' or '.join(FORMATS)} with {ALERTS}"
        )
    if typed.decode == "gpu":
        raise ConfigError(
            f"--decode gpu keeps pictures in GPU memory, and {ALERTS} needs them for masks and "
            "evidence: leave it out"
        )


def check_needs_alerts(typed: argparse.Namespace) -> None:
    """Raises ConfigError for what means something with --alerts alone."""
    if typed.deliver:
        raise ConfigError(f"--deliver sends alerts, and no {ALERTS} FILE is given: give that, too")


def sources_of(
    alerts: AlertFile, given: Sequence[str]
) -> tuple[tuple[str, ...], list[str | tuple[str, ...]]]:
    """The names of the streams that run, and their sources.

    given: on the command line. None: every stream reads its own url. One without a name: every
    stream reads that one. STREAM=SOURCE: only these streams run. Raises ConfigError for others.
    """
    names = tuple(alerts.streams)
    named = {}
    for text in given:
        name, equals, source = text.partition("=")
        if equals and name in alerts.streams:
            if name in named:
                raise ConfigError(f"stream {name} is given two sources: leave one out")
            named[name] = source
    if named and len(named) < len(given):
        raise ConfigError(
            f"some sources have the name of a stream, and others not: write each as STREAM=SOURCE "
            f"with one of {', '.join(names)}"
        )
    if named:
        chosen = tuple(name for name in names if name in named)
        return chosen, _checked([_single(named[name]) for name in chosen])
    if not given:
        return names, _checked([entry.source(name) for name, entry in alerts.streams.items()])
    sources = grouped(given)
    if len(sources) > 1:
        shown_names = ", ".join(redact_url(name_of(source)) for source in sources)
        raise ConfigError(
            f"{len(sources)} sources are given ({shown_names}): give one, which every stream of "
            f"the alert file reads, or STREAM=SOURCE with one of {', '.join(names)}"
        )
    return names, _checked(list(sources) * len(names))


def _single(source: str) -> str:
    if not source:
        raise ConfigError("a stream is given an empty source: write STREAM=SOURCE")
    return source


def _checked(sources: list[str | tuple[str, ...]]) -> list[str | tuple[str, ...]]:
    if sources.count(STDIN) > 1:
        raise ConfigError(
            f"stdin can be read by one stream, and {sources.count(STDIN)} would read it: name one "
            f"as STREAM={STDIN}"
        )
    return sources
