"""The process that opened a session, the only one that may use it."""

from __future__ import annotations

import os

from vicort.runtime.errors import VicortError


class OwningProcess:
    """A forked child has the session's memory and none of its threads: it would wait for ever."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def here(self) -> bool:
        return os.getpid() == self._id

    def check(self, method: str) -> None:
        """Raises VicortError in a forked child."""
        if not self.here:
            raise VicortError(
                f"{method} was called in a forked child, and the session belongs to process "
                f"{self._id}: open one in the child, or start it by spawn"
            )
