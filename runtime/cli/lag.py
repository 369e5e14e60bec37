"""How far behind the world a run is: the measured side of --realtime and of live sources."""

from __future__ import annotations

import threading
import time
from collections import deque
from fractions import Fraction
from typing import Any

from vicort.runtime.core import Answer, ChunkEvent, Event
from vicort.runtime.stream_statistics import percentiles

LATE = 0.1  # seconds: a frame that is handed over so long after it was due is late
# the latest, over which percentiles are taken, and frames whose capture is known
REMEMBERED = 10_000


class LagMeter:
    """Capture is when a frame came from a live source, or, of a file that is played, when its
    timestamp was due. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # stream time of a frame that was taken -> monotonic seconds
        self._captured: dict[Fraction, float] = {}
        self._first_tokens: dict[str, float] = {}  # of answers that are being given
        self._lags: deque[float] = deque(maxlen=REMEMBERED)
        self._ages: deque[float] = deque(maxlen=REMEMBERED)
        self._late = 0

    def captured(self, at: Fraction, captured: float) -> None:
        """A frame of that time is handed over now, and was captured then (monotonic seconds)."""
        with self._lock:
            self._late += time.monotonic() - captured > LATE
            self._captured[at] = captured
            if len(self._captured) > REMEMBERED:
                del self._captured[next(iter(self._captured))]

    def token(self, answer_id: str) -> None:
        """An answer goes on; its first token is what counts."""
        with self._lock:
            self._first_tokens.setdefault(answer_id, time.monotonic())

    def event(self, event: Event) -> None:
        """A chunk is in memory, or an answer is given."""
        now = time.monotonic()
        with self._lock:
            if isinstance(event, ChunkEvent) and event.end in self._captured:
                self._lags.append(1e3 * (now - self._captured[event.end]))
            if isinstance(event, Answer):
                first = self._first_tokens.pop(event.id, None)
                if first is not None and event.seen_until in self._captured:
                    self._ages.append(1e3 * (first - self._captured[event.seen_until]))

    def summary(self) -> dict[str, Any]:
        """lag_ms: p50, p95, p99 over chunks, from the capture of the last frame until all of the
        chunk lies in memory; late: frames.

        capture_to_token_ms: the same over answers, from the capture of the newest frame an answer
        saw to its first token.
        """
        with self._lock:
            return {
                "lag_ms": percentiles(self._lags),
                "late": self._late,
                "capture_to_token_ms": percentiles(self._ages),
            }
