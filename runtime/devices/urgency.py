"""Stream priority on the host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Urgency:
    """Counts urgent work in progress. While there is any, streams without priority start no new
    work."""

    def __init__(self) -> None:
        self._running = 0
        self._idle = threading.Condition()

    @contextmanager
    def urgent_work(self) -> Iterator[None]:
        with self._idle:
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def wait_for_urgent_work(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)
