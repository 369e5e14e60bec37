"""The thread that delivers to one target: the oldest message first, and again until it arrives."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from vicort.runtime.alerts.back_off import BackOff
from vicort.runtime.alerts.channel import THREAD, Channel, NotDelivered
from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.outbox import Outbox, Waiting
from vicort.runtime.alerts.seldom import Seldom
from vicort.runtime.safe_text import brief

logger = logging.getLogger(__name__)

MAX_REFUSED = 6  # tries of a message that the receiver refuses
ENOUGH = 1.0  # seconds for the end where nothing waits
IDLE_SECONDS = 5.0  # between two looks at a connection while nothing waits


class Courier:
    """Delivers to one target until it is closed.

    A message is tried again without limit, but for one that the receiver can never take: that is
    given up after MAX_REFUSED tries, so that it does not keep back those after it.
    """

    def __init__(
        self,
        target: str,
        label: str,
        channel: Channel,
        outbox: Outbox,
        credentials: Credentials,
        back_off: BackOff,
        warn: Callable[[str], None],
    ) -> None:
        """target: its identity in the outbox."""
        self.label = label
        self._target = target
        self._channel = channel
        self._outbox = outbox
        self._credentials = credentials
        self._back_off = back_off
        self._seldom = Seldom(warn)
        self._thread = threading.Thread(target=self._run, name=f"{THREAD}{label}", daemon=True)
        self._stop = threading.Event()
        self._deadline: float | None = None  # monotonic: of the end
        self._delivered = self._refused = self._failed = 0
        self._in_a_row = 0
        self._refusals = 0  # of the oldest
        self._next = 0.0  # monotonic: of the next try
        self._reachable = True
        self._away_said = False  # since it was reached
        self._last_error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def finish(self, deadline: float) -> None:
        """Deliver what waits until a time of the monotonic clock, then end. The outbox must wake
        the thread."""
        self._deadline = deadline

    def join(self, deadline: float) -> None:
        """Wait for the end; at the deadline a try that is running is cut off. If nothing waits,
        that is soon."""
        if not self._thread.ident:
            return
        if not self._outbox.counts(self._target)[0]:
            deadline = min(deadline, time.monotonic() + ENOUGH)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stop.set()
        if self._thread.is_alive():
            self._channel.abort()
            self._thread.join(1.0)

    def state(self) -> dict[str, Any]:
        waiting, dropped, lost = self._outbox.counts(self._target)
        return {
            "reachable": self._reachable,
            "delivered": self._delivered,
            "waiting": waiting,
            "dropped": dropped,
            "refused": self._refused,
            "unreadable": lost,
            "failed_tries": self._failed,
            "last_error": self._last_error,
        }

    def _run(self) -> None:
        try:
            self._watch(self._channel.check)
            while not self._stop.is_set():
                if not self._step():
                    break
        finally:
            self._channel.close()

    def _step(self) -> bool:
        """One try, or one pause. Returns whether to go on."""
        waiting = self._outbox.first(self._target)
        if waiting is None:
            if self._deadline is not None:
                return False
            self._outbox.wait(self._target, IDLE_SECONDS, for_more=True)
            self._outbox.tidy()
            if self._outbox.first(self._target) is None and time.monotonic() >= self._next:
                self._watch(self._channel.keep if self._reachable else self._channel.check)
            return True
        if (rest := self._next - time.monotonic()) > 0:
            self._pause(rest)
            return True
        if self._seconds() <= 0:
            return False
        self._try(waiting)
        return True

    def _pause(self, seconds: float) -> None:
        if self._deadline is not None:
            self._stop.wait(min(seconds, max(0.0, self._deadline - time.monotonic())))
            if time.monotonic() >= self._deadline:
                self._stop.set()
            return
        self._outbox.wait(self._target, seconds, for_more=False)
        self._outbox.tidy()
        if self._deadline is not None:  # the end has begun: once more, at once
            self._next = 0.0

    def _seconds(self) -> float:
        """How long a try may take."""
        if self._deadline is None:
            return self._channel.timeout
        return min(self._channel.timeout, self._deadline - time.monotonic())

    def _try(self, waiting: Waiting) -> None:
        try:
            message = self._outbox.content(waiting)
        except sqlite3.Error as error:
            self._failed += 1
            self._failure(NotDelivered(f"the spool cannot be read: {brief(error)}"))
            return
        if message is None:
            self._outbox.done(self._target, waiting, lost=True)
            self._seldom.say(
                "unreadable",
                f"{self.label}: {{count}} of the messages in the spool cannot be read",
            )
            return
        try:
            self._guarded(lambda: self._channel.deliver(message, self._seconds()))
        except NotDelivered as error:
            self._failed += 1
            self._failure(error)
            self._refusals += error.refused
            if error.final or self._refusals >= MAX_REFUSED:
                self._give_up(waiting, error)
            return
        self._delivered += 1
        self._refusals = 0
        self._outbox.done(self._target, waiting)
        self._success()
        logger.debug("%s: delivered %s", self.label, message.key)

    def _watch(self, look: Callable[[float], None]) -> None:
        """Look whether the target can be reached, and say so once if not."""
        try:
            self._guarded(lambda: look(max(0.1, self._seconds())))
        except NotDelivered as error:
            self._failure(error)
        else:
            self._success()

    def _guarded(self, call: Callable[[], None]) -> None:
        """Whatever fails in a channel is a failed try: this thread has to go on."""
        try:
            call()
        except NotDelivered:
            raise
        except Exception as error:
            logger.info("%s: %s", self.label, type(error).__name__)
            raise NotDelivered(
                f"{type(error).__name__}: {self._credentials.reason(error)}"
            ) from error

    def _failure(self, error: NotDelivered) -> None:
        self._in_a_row += 1
        self._last_error = reason = self._credentials.hide(str(error))
        self._next = time.monotonic() + self._back_off.seconds(self._in_a_row, error.retry_after)
        logger.debug("%s: try %d failed: %s", self.label, self._in_a_row, reason)
        if error.refused:
            return  # it is reached; `_give_up` warns
        self._reachable = False
        if not self._away_said and self._deadline is None:
            self._away_said = self._seldom.say(
                "away",
                f"{self.label}: not reached ({reason}): messages are kept, and tried again until "
                "they arrive",
            )

    def _success(self) -> None:
        if not self._reachable:
            logger.info("%s: reached again", self.label)
        self._reachable = True
        self._away_said = False
        self._in_a_row = 0
        self._next = 0.0

    def _give_up(self, waiting: Waiting, error: NotDelivered) -> None:
        reason = self._credentials.hide(str(error))
        self._refused += 1
        self._refusals = 0
        self._success()
        self._outbox.done(self._target, waiting)
        self._seldom.say(
            "refused",
            f"{self.label}: gave up {{count}} of the messages, which it refuses ({reason})",
        )
