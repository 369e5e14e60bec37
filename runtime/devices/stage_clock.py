"""How long each stage takes, on the clock of its device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from vicort.runtime.devices.device import Mark, Stream


class SpanSink(Protocol):
    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None: ...


@dataclass(frozen=True)
class _Span:
    stage: str
    start: Mark
    end: Mark
    args: dict[str, Any]


class StageClock:
    """Time spent inside each stage, on its device's clock, and its spans for a trace."""

    def __init__(self, trace: SpanSink | None) -> None:
        self._trace = trace
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}
        self._open: list[_Span] = []  # whose end the device has not come to

    @property
    def totals(self) -> dict[str, int]:
        """Nanoseconds a stage, of what is done."""
        self.settle()
        with self._lock:
            return dict(self._totals)

    @contextmanager
    def measure(self, stage: str, stream: Stream, **args: Any) -> Iterator[None]:
        """Time what is done inside on `stream`, from its own work."""
        start = stream.mark()
        try:
            yield
        finally:
            with self._lock:
                self._open.append(_Span(stage, start, stream.mark(), args))
            self.settle()

    def settle(self) -> None:
        """Count what has come to its end."""
        with self._lock:
            spans, self._open = self._open, []
            for span in spans:
                start, end = span.start.ns(), span.end.ns()
                if start is None or end is None:
                    self._open.append(span)
                    continue
                self._totals[span.stage] = self._totals.get(span.stage, 0) + end - start
                if self._trace:
                    self._trace.span(span.stage, span.stage, start, end, **span.args)
