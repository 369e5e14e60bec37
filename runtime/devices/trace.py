"""Chrome trace of a run: open it in https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
import threading
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from vicort.runtime.written_files import write_file

# the latest spans are kept, so the trace of an endless stream stays below about 300 MB
MAX_SPANS = 1_000_000


class TraceSpan(NamedTuple):
    track: str
    name: str
    start: int  # nanoseconds, on any one clock
    end: int
    args: dict[str, Any]


class Trace:
    """Collects spans from any thread. Each track becomes a row, ordered by its first span."""

    def __init__(self, spans: int = MAX_SPANS) -> None:
        self._spans: deque[TraceSpan] = deque(maxlen=spans)
        self._lock = threading.Lock()

    @property
    def kept(self) -> int:
        """Number of spans that `write` writes."""
        return len(self._spans)

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        """Record that `name` ran on `track` from start to end. args: shown with it, JSON values."""
        with self._lock:
            self._spans.append(TraceSpan(track, name, start_ns, end_ns, args))

    def write(self, path: Path | str) -> None:
        """Write the trace: whole, or not at all. Raises ConfigError if it cannot be written."""
        with self._lock:
            spans = list(self._spans)
        content = json.dumps({"traceEvents": _events(spans), "displayTimeUnit": "ms"})
        write_file(path, content, "--trace")


def _events(spans: list[TraceSpan]) -> list[dict[str, Any]]:
    """Trace Event Format: times in microseconds from the first span. Spans of one row may not
    overlap, so a track may need several rows."""
    origin = min((span.start for span in spans), default=0)
    ends: dict[str, list[int]] = {}  # track -> end of the last span in each of its rows
    rows: dict[tuple[str, int], int] = {}  # (track, row in the track) -> thread id
    events: list[dict[str, Any]] = []
    for span in sorted(spans, key=lambda span: span.start):
        busy = ends.setdefault(span.track, [])
        row = next((row for row, end in enumerate(busy) if end <= span.start), len(busy))
        busy[row:] = [span.end, *busy[row + 1 :]]
        thread = rows.setdefault((span.track, row), len(rows) + 1)
        start, duration = (span.start - origin) / 1e3, (span.end - span.start) / 1e3
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": thread,
                "name": span.name,
                "ts": start,
                "dur": duration,
                "args": span.args,
            }
        )
    order = sorted(rows, key=lambda key: (list(ends).index(key[0]), key[1]))
    for index, (track, row) in enumerate(order):
        common = {"ph": "M", "pid": 1, "tid": rows[track, row]}
        events.append(
            common
            | {"name": "thread_name", "args": {"name": track if row == 0 else f"{track} {row + 1}"}}
        )
        events.append(common | {"name": "thread_sort_index", "args": {"sort_index": index}})
    return events
