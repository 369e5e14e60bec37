"""Snapshots that wait for their turn in the prefill stream."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from vicort.runtime.answering import Snapshot


class OrdinarySnapshots:
    """Which conversations have snapshots that wait for their turn in the prefill stream: one that
    is taken first would be older than that of the turn before it. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __contains__(self, conversation: str | None) -> bool:
        with self._lock:
            return conversation is not None and self._waiting[conversation] > 0

    def counted(
        self, conversation: str | None, take: Callable[[], list[Snapshot | Exception]]
    ) -> Callable[[], list[Snapshot | Exception]]:
        """`take`, whose conversation is among these until it returns."""
        if conversation is None:
            return take
        self._count(conversation, 1)

        def taken() -> list[Snapshot | Exception]:
            try:
                return take()
            finally:
                self._count(conversation, -1)

        return taken

    def _count(self, conversation: str, change: int) -> None:
        with self._lock:
            self._waiting[conversation] += change
            if not self._waiting[conversation]:
                del self._waiting[conversation]
