"""Warnings of one kind, of which at most one a minute is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

EVERY = 60.0  # seconds


class Seldom:
    """Thread-safe."""

    def __init__(
        self, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._warn = warn
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[Hashable, float] = {}
        self._counts: dict[Hashable, int] = {}

    def say(self, kind: Hashable, line: str) -> bool:
        """line: in which {count} stands for the number of times since the last one, this one
        included. Returns whether it was given."""
        with self._lock:
            count = self._counts[kind] = self._counts.get(kind, 0) + 1
            now = self._clock()
            if kind in self._last and now < self._last[kind] + EVERY:
                return False
            self._last[kind], self._counts[kind] = now, 0
        self._warn(line.replace("{count}", str(count)))
        return True
