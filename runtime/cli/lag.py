"""Measures the lag of live sources and of --realtime."""

from __future__ import annotations

import threading
import time
from collections import deque
from fractions import Fraction
from typing import Any

from vicort.runtime.core import Answer, ChunkEvent, Event
from vicort.runtime.stream_statistics import percentiles

LATE = 0.1  # seconds: a frame that is pushed later than this after its capture counts as late
MAX_SAMPLES = 10_000  # number of samples in the percentiles, and of capture times that are kept


class LagMeter:
    """Measures from the capture of a frame: its arrival from a live source, or its due time with
    --realtime. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # stream time of a sampled frame -> monotonic seconds of its capture
        self._captured: dict[Fraction, float] = {}
        self._first_tokens: dict[str, float] = {}  # answer id -> monotonic seconds
        self._lags: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._ages: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._late = 0

    def captured(self, at: Fraction, captured: float) -> None:
        """Record a frame that is pushed now. at: its stream time. captured: monotonic seconds."""
        with self._lock:
            self._late += time.monotonic() - captured > LATE
            self._captured[at] = captured
            if len(self._captured) > MAX_SAMPLES:
                del self._captured[next(iter(self._captured))]

    def token(self, answer_id: str) -> None:
        """Record a token of an answer. Only the first one of each answer counts."""
        with self._lock:
            self._first_tokens.setdefault(answer_id, time.monotonic())

    def event(self, event: Event) -> None:
        """Record that a chunk is in memory, or that an answer is complete."""
        now = time.monotonic()
        with self._lock:
            if isinstance(event, ChunkEvent) and event.end in self._captured:
                self._lags.append(1e3 * (now - self._captured[event.end]))
            if isinstance(event, Answer):
                first = self._first_tokens.pop(event.id, None)
                if first is not None and event.seen_until in self._captured:
                    self._ages.append(1e3 * (first - self._captured[event.seen_until]))

    def summary(self) -> dict[str, Any]:
        """Returns lag_ms, late and capture_to_token_ms.

        lag_ms: p50, p95 and p99 over chunks, from the capture of the last frame until the chunk is
        in memory. late: number of late frames. capture_to_token_ms: the same percentiles over
        answers, from the capture of the newest frame that an answer saw to its first token.
        """
        with self._lock:
            return {
                "lag_ms": percentiles(self._lags),
                "late": self._late,
                "capture_to_token_ms": percentiles(self._ages),
            }
