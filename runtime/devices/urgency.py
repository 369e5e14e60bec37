"""Stream priority on the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Urgency:
    """Counts urgent work in progress. While there is any, streams without priority start no new
    work."""

    holds_back = True  # whether `wait_for_urgent_work` waits: on a GPU its scheduler does

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

    def wait_for_urgent_work(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until there is none, or `unless` is true. `check_again` follows each change of what
        `unless` asks."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0 or unless())

    def check_again(self) -> None:
        with self._idle:
            self._idle.notify_all()
