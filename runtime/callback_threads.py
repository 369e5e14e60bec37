"""Which threads are inside a function of the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vicort.runtime.errors import VicortError


class CallbackThreads:
    """The threads on which a session runs its caller's functions: on_event, on_token, and what is
    added to an answer's future.

    The session waits for these functions, so what waits for the session must not be called there.
    """

    def __init__(self) -> None:
        self._depth = threading.local()

    @property
    def here(self) -> bool:
        """Whether this thread runs such a function."""
        return getattr(self._depth, "value", 0) > 0

    @contextmanager
    def running(self) -> Iterator[None]:
        before = getattr(self._depth, "value", 0)
        self._depth.value = before + 1
        try:
            yield
        finally:
            self._depth.value = before

    def refuse(self, method: str) -> None:
        """Raises VicortError if a method that waits is called from such a function."""
        if self.here:
            raise VicortError(
                f"{method} was called from on_event, on_token or a callback of an answer, for "
                "which the session waits: use submit there, or call it on another thread"
            )
