"""What a kind of target is to the thread that delivers to it."""

from __future__ import annotations

from typing import Protocol

from vicort.runtime.alerts.message import Message

THREAD = "deliver "  # how the names of the threads begin that deliver


class NotDelivered(Exception):
    """A try failed. The text is the reason, in a few words and without secrets.

    refused: the receiver can never take this message; after some tries it is given up. final: it is
    given up at once. retry_after: seconds that the receiver wants to be left alone.
    """

    def __init__(
        self,
        reason: str,
        *,
        refused: bool = False,
        final: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.refused = refused or final
        self.final = final
        self.retry_after = retry_after


class Channel(Protocol):
    """Called by one thread, but for `abort`. `seconds`: how long a call may take."""

    @property
    def timeout(self) -> float:
        """Seconds that a try may take."""
        ...

    def check(self, seconds: float) -> None:
        """Whether the target can be reached; nothing is delivered. Raises NotDelivered."""
        ...

    def deliver(self, message: Message, seconds: float) -> None:
        """Returns when the receiver has taken the message. Raises NotDelivered."""
        ...

    def keep(self, seconds: float) -> None:
        """Called now and then while nothing waits. Raises NotDelivered."""
        ...

    def abort(self) -> None:
        """End the call that is running, which then raises NotDelivered. From any thread."""
        ...

    def close(self) -> None: ...
