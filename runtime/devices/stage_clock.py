"""Stage times, measured on the device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from vicort.runtime.devices.device import Mark, Stream

logger = logging.getLogger(__name__)


class SpanSink(Protocol):
    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None: ...


@dataclass(frozen=True)
class _OpenSpan:
    stage: str
    start: Mark
    end: Mark
    args: dict[str, Any]


class StageClock:
    """Adds up the device time of each stage, and reports its spans to a trace."""

    def __init__(self, trace: SpanSink | None) -> None:
        self._trace = trace
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}
        self._open: list[_OpenSpan] = []  # the device has not reached their end

    @property
    def totals(self) -> dict[str, int]:
        """Nanoseconds per stage, of finished spans."""
        self.settle()
        with self._lock:
            return dict(self._totals)

    @contextmanager
    def measure(self, stage: str, stream: Stream, **args: Any) -> Iterator[None]:
        """Measure the work that the body puts on `stream`. Call from the work of that stream."""
        start = stream.mark()
        try:
            yield
        finally:
            with self._lock:
                self._open.append(_OpenSpan(stage, start, stream.mark(), args))
            self.settle()

    def settle(self) -> None:
        """Add the spans that have finished since the last call."""
        with self._lock:
            spans, self._open = self._open, []
            for span in spans:
                start, end = span.start.ns(), span.end.ns()
                if start is None or end is None:
                    self._open.append(span)
                    continue
                self._totals[span.stage] = self._totals.get(span.stage, 0) + end - start
                logger.debug("%s took %.2f ms %s", span.stage, (end - start) / 1e6, span.args)
                if self._trace:
                    self._trace.span(span.stage, span.stage, start, end, **span.args)
