"""Arguments of `open_source`: values of a wrong kind are refused before a source is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vicort.runtime.argument_kinds import (
    check_choice,
    check_flags,
    check_functions,
    check_kind,
    checked_name,
    checked_real,
    checked_whole,
)
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience

MOST = 2**31 - 1  # of a stream's index, and of threads
SHORTEST, LONGEST = 1e-3, 1e9  # seconds, of a time-out
SPEC = "the name of a file, a URL, a path, or a list of image files"


def checked_spec(spec: Any) -> str | tuple[str, ...]:
    """The source's name, or the names of its images. Raises ConfigError."""
    if isinstance(spec, list | tuple) and spec:
        return tuple(checked_name(each, "an image of the source", SPEC) for each in spec)
    return checked_name(spec, "the source", SPEC)


def check_callbacks_and_flags(
    live: Any, motion: Any, at_once: Any, isolate: Any, warn: Any, on_state: Any
) -> None:
    """Raises ConfigError."""
    check_flags(motion=motion, at_once=at_once, isolate=isolate)
    if live is not None:
        check_flags(live=live)
    check_functions(warn=warn, on_state=on_state)


def check_choices(decode: Any, transport: Any, decodes: Sequence[str], ways: Sequence[str]) -> None:
    """Raises ConfigError."""
    check_choice(decode, decodes, "decode")
    check_choice(transport, ways, "rtsp_transport")


def checked_stream(stream: Any) -> int | None:
    """Raises ConfigError."""
    return None if stream is None else checked_whole(stream, "stream", 0, MOST)


def checked_limits(limits: Any) -> Limits:
    """Raises ConfigError."""
    check_kind(limits, (Limits, type(None)), "limits", "vicort.runtime.sources.limits.Limits(...)")
    return Limits() if limits is None else limits


def checked_patience(patience: Any) -> Patience:
    """Raises ConfigError."""
    kinds = (Patience, type(None))
    check_kind(patience, kinds, "patience", "vicort.runtime.sources.live.Patience(...)")
    if patience is None:
        return Patience()
    own: dict[str, Any] = {}
    for name in ("open_timeout", "read_timeout", "first_delay", "max_delay", "steady"):
        value, least = getattr(patience, name), SHORTEST if name.endswith("timeout") else 0
        if value is not None or name != "read_timeout":
            own[name] = checked_real(value, name, least, LONGEST)
    if patience.attempts is not None:
        own["attempts"] = checked_whole(patience.attempts, "attempts", 0, MOST)
    return replace(patience, **own)
