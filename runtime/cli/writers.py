"""Writes events as text, JSONL or subtitles. Each event is flushed immediately."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, TextIO

from vicort.runtime.alerts.alert_event import AlertEvent, AlertsEvent, DeliveryEvent
from vicort.runtime.core import (
    Answer,
    ChunkEvent,
    Event,
    MemoryEvent,
    SourceEvent,
    Spoken,
    Summary,
    WhyEmpty,
)
from vicort.runtime.safe_text import printable, without_controls

# how long a cue stays on the screen: the time of the next one is not known when it is written
CUE_SECONDS = Fraction(4)
SHOWN_CHOICES = 5  # of one answer, in text
WHY_EMPTY: dict[WhyEmpty, str] = {
    "ended-at-once": "the model ended it at once",
    "stop-text": "it begins with a stop text",
    "no-text": "its tokens stand for none",
    "unchanged": "not asked, as nothing has changed since it was asked last",
    "unlike": "not asked, as nothing like it came since it was asked last",
}


class Writer(ABC):
    """Not thread-safe."""

    shows_stats = False  # whether it writes chunk events
    shows_sources = False  # whether it writes the source of an event
    shows_warnings = False  # whether it writes warnings too, besides stderr

    def __init__(self, file: TextIO) -> None:
        self._file = file
        # whether an answer is partly written, so that no progress bar may be drawn
        self.mid_line = False

    def start(self) -> None:
        """Write the header of the format, once."""
        return None

    @abstractmethod
    def write(self, event: Event, source: str = "") -> None:
        """source: label of the source, "" if there is only one."""
        ...

    def token(self, answer_id: str, question: str, text: str) -> None:
        """Write a part of an answer. The complete answer follows as an event."""
        return None

    def _put(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


class JsonlWriter(Writer):
    """One JSON object per line."""

    shows_stats = shows_sources = shows_warnings = True

    def write(self, event: Event, source: str = "") -> None:
        content = timed(event) | ({"source": source} if source else {})
        self._put(
            # such characters stand in strings only, where JSON has the same escapes
            without_controls(json.dumps(content, ensure_ascii=False)) + "\n"
        )


class TextWriter(Writer):
    """Text for people: answers, and a last line about the run. A terminal shows one answer at a
    time, token by token."""

    shows_stats = shows_sources = True

    def __init__(self, file: TextIO) -> None:
        super().__init__(file)
        self._live = file.isatty()
        self._open: str | None = None  # id of the answer that is partly written
        self._waiting: list[Event] = []  # events to write after it

    def token(self, answer_id: str, question: str, text: str) -> None:
        if not self._live or self._open not in (None, answer_id):
            return
        if self._open is None:
            self._put(without_controls(f"{question}\n  "))
            self._open = answer_id
            self.mid_line = True
        self._put(without_controls(text))

    def write(self, event: Event, source: str = "") -> None:
        if source:  # answers are not written token by token then
            self._put(f"[{printable(source)}] {_as_text(event)}")
        elif self._open is not None and isinstance(event, Answer) and event.id == self._open:
            self._complete(f"   {_when(event)}\n")
        elif self._open is not None and not isinstance(event, Summary):
            self._waiting.append(event)
        else:
            if self._open is not None:  # the run ended before the answer was complete
                self._complete(" …\n")
            self._put(_as_text(event))

    def _complete(self, rest: str) -> None:
        """End the answer that is partly written, and write the events that waited for it."""
        self._put(rest)
        self._open = None
        self.mid_line = False
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._put(_as_text(event))


class SrtWriter(Writer):
    """SubRip: a cue for each answer at the time of its question, and for each spoken text at its
    own time."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(file)
        self._cues = 0

    def write(self, event: Event, source: str = "") -> None:
        if isinstance(event, Answer | Spoken):
            self._cues += 1
            self._put(f"{self._cues}\n{_span(event, ',')}\n{_cue(event)}\n\n")


class VttWriter(Writer):
    """WebVTT: a cue for each answer at the time of its question, and for each spoken text at its
    own time."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(file)
        self._started = False

    def start(self) -> None:
        if not self._started:
            self._started = True
            self._put("WEBVTT\n\n")

    def write(self, event: Event, source: str = "") -> None:
        if isinstance(event, Answer | Spoken):
            name = f"{_lines(event.id)}\n" if isinstance(event, Answer) else ""
            self._put(f"{name}{_span(event, '.')}\n{html.escape(_cue(event), quote=False)}\n\n")


WRITERS: dict[str, type[Writer]] = {
    "text": TextWriter,
    "jsonl": JsonlWriter,
    "srt": SrtWriter,
    "vtt": VttWriter,
}


def timed(event: Event) -> dict[str, Any]:
    """The event for JSON, with the time of day at which it is written."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content = event.to_json()
    return {"event": content.pop("event"), "time": now} | content


def _as_text(event: Event) -> str:
    return without_controls(_text_of(event))


def _text_of(event: Event) -> str:
    match event:
        case Answer():
            return f"{event.question}\n  {event.text}   {_when(event)}\n"
        case AlertEvent():
            return _alert(event)
        case AlertsEvent():
            return "".join(
                f"{name} on {event.stream}: {counts_text(counts)}\n"
                for name, counts in event.alerts.items()
            )
        case DeliveryEvent():
            return _delivery(event)
        case Spoken():
            return (
                f"{float(event.at):.3f} s: {event.text}   [silence {event.silence:.3f}, first "
                f"token after {event.latency_ms:.1f} ms]\n"
            )
        case ChunkEvent():
            span = f"{float(event.start):.3f}-{float(event.end):.3f} s"
            return (
                f"chunk {event.index}: {event.frames} frames, {span}, kept {event.kept} of "
                f"{event.tokens} tokens, {event.wall_ms:.1f} ms\n"
            )
        case MemoryEvent():
            if event.seconds is None:
                return f"memory: {event.options}\n"
            return (
                f"memory: {event.options}, room for {duration(event.seconds)} if nothing is "
                "dropped\n"
            )
        case SourceEvent():
            attempt = f" (attempt {event.attempt})" if event.attempt else ""
            reason = f": {event.reason}" if event.reason else ""
            return f"source {event.state} at {float(event.at):.3f} s{attempt}{reason}\n"
        case Summary():
            dropped = f" ({event.dropped} dropped)" if event.dropped else ""
            ttft = (
                f", first token after {event.ttft_ms['p50']:.1f} ms (median)"
                if event.ttft_ms
                else ""
            )
            rate = f"{event.seconds:.2f} s, {event.fps:.1f} frames/s{ttft}"
            return (
                f"{event.system}: {event.frames} frames{dropped} in {event.chunks} chunks, "
                f"{rate}{_lag(event)}\n"
            )
    raise TypeError(f"{event.name} has no text form")


def _alert(event: AlertEvent) -> str:
    series = ", ".join(f"{float(at):g} s {probability:.2f}" for at, probability in event.series)
    delay = "" if event.delay_ms is None else f", {event.delay_ms:.0f} ms after its frame"
    zone = f", zone {event.zone}" if event.zone else ""
    files = "".join(f", {path}" for path in (event.picture, event.clip) if path)
    described = f"\n  {event.description}" if event.description else ""
    return (
        f"{event.alert} {event.state} on {event.stream}{zone} at {float(event.at):.3f} s: "
        f"{event.choice} {event.probability:.2f}   [{series}{delay}{files}]{described}\n"
    )


def counts_text(counts: dict[str, int]) -> str:
    """
    >>> counts_text({"asked": 9, "skipped": 0, "failed": 0, "fired": 1, "cleared": 1})
    'asked 9, fired 1, cleared 1'
    """
    usual = ("asked", "fired", "cleared")
    rare = (name for name in counts if name not in usual and counts[name])
    return ", ".join(f"{name} {counts[name]}" for name in (*usual, *rare))


def _delivery(event: DeliveryEvent) -> str:
    return "".join(
        f"delivery to {label}: {', '.join(f'{name} {value}' for name, value in state.items())}\n"
        for label, state in event.state["targets"].items()
    )


def duration(seconds: float) -> str:
    """
    >>> duration(42.4), duration(700), duration(10_000)
    ('42 s', '12 min', '2.8 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _lag(summary: Summary) -> str:
    if not summary.realtime or not (lag := summary.realtime["lag_ms"]):
        return ""
    return (
        f", lag {lag['p50']:.1f} ms (median) and {lag['p99']:.1f} ms (p99), "
        f"{summary.realtime['late']} frames late"
    )


def _when(answer: Answer) -> str:
    requested = "" if answer.requested is None else f" for {float(answer.requested):.3f} s"
    seen = (
        "nothing seen"
        if answer.seen_until is None
        else f"seen until {float(answer.seen_until):.3f} s"
    )
    times = f"asked at {float(answer.at):.3f} s{requested}, {seen}"
    empty = f", no text: {WHY_EMPTY[answer.empty]}" if answer.empty else ""
    cut = "" if answer.complete else f", cut after {answer.tokens} tokens"
    doubt = f", a guess (probability {answer.probability:.2f})" if answer.doubtful else ""
    if not answer.asked:
        return f"[{times}{empty}]"
    facts = f"{_unread(answer)}{_probabilities(answer)}{empty}{cut}"
    return f"[{times}{facts}, first token after {answer.ttft_ms:.1f} ms{doubt}]"


def _probabilities(answer: Answer) -> str:
    """Of the likeliest choices, and of all other texts."""
    if not answer.choices:
        return ""
    ranked = sorted(answer.choices.items(), key=lambda each: -each[1])
    shown = "".join(f", {text} {chance:.2f}" for text, chance in ranked[:SHOWN_CHOICES])
    more = f", {len(ranked) - SHOWN_CHOICES} more" if len(ranked) > SHOWN_CHOICES else ""
    return f"{shown}{more}, other texts {answer.outside or 0:.2f}"


def _unread(answer: Answer) -> str:
    """That nothing was read of the part of the stream that a question was about."""
    if not answer.limited or answer.read:
        return ""
    sides = [
        f"{word} {float(time):.3f} s"
        for word, time in (("from", answer.since), ("until", answer.until))
        if time is not None
    ]
    oldest = (
        ""
        if answer.memory_from is None
        else f" (memory begins at {float(answer.memory_from):.3f} s)"
    )
    return f", nothing is remembered {' '.join(sides)}{oldest}"


def _span(event: Answer | Spoken, point: str) -> str:
    return f"{_clock(event.at, point)} --> {_clock(event.at + CUE_SECONDS, point)}"


def _cue(event: Answer | Spoken) -> str:
    return (
        f"{_lines(event.question)}\n{_lines(event.text)}"
        if isinstance(event, Answer)
        else _lines(event.text)
    )


def _clock(seconds: Fraction, point: str) -> str:
    """HH:MM:SS.mmm. Negative times become 0, because subtitles cannot express them."""
    milliseconds = max(0, round(seconds * 1000))
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _lines(text: str) -> str:
    """Remove empty lines and arrows, which would end a cue."""
    lines = "\n".join(line for line in text.splitlines() if line.strip())
    return without_controls(lines).replace("-->", "->") or "-"
