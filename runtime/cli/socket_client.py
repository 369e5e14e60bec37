"""One client of the socket for questions: its lines, what is sent back, how much may wait."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from vicort.runtime.cli.questions import MAX_LINE
from vicort.runtime.cli.writers import timed
from vicort.runtime.core import Answer
from vicort.runtime.safe_text import without_controls

AT_ONCE = 4  # questions without a time that are answered at once: more lines are read afterwards
MAX_TIMED = 64  # questions with a time that may wait for it
WAITING_SECONDS = 3600.0  # that a question waits for its time
IDLE_SECONDS = 600.0  # without a question: then the client is disconnected
POLL_SECONDS = 1.0
RECEIVED = 1 << 16  # bytes that are read at once
DISCARDED = 64  # reads, of a line that is too long
DISCARD_SECONDS = 0.2


class SocketClient:
    """A client that does not read fast enough is disconnected: sending never blocks.

    Its lines are read only while fewer than AT_ONCE of its questions are being answered, so that
    one that asks without end waits by itself, and the others' questions come in between.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting: dict[Future[Answer], float] = {}  # since when, monotonic seconds
        self._timed: set[Future[Answer]] = set()  # of these, the ones with a time
        self._expired: set[Future[Answer]] = set()
        self._asked_last = time.monotonic()
        self._changed = threading.Condition()
        self._closed = False

    # ---- what it sends ----

    def lines(self) -> Iterator[str]:
        """Yield lines until the client stops sending, sends a line that is too long, or asks
        nothing for too long."""
        rest = b""  # of a line whose end has not come
        while (received := self._receive()) is not None:
            *whole, rest = (rest + received).split(b"\n")
            for line in [*whole, *([] if received else [rest])]:  # the last one may lack its end
                if len(line) >= MAX_LINE:
                    break
                self._asked_last = time.monotonic()
                yield line.decode("utf-8", "replace")
                self._wait(lambda: len(self._waiting) - len(self._timed) < AT_ONCE)
            if max(map(len, [*whole, rest])) >= MAX_LINE:
                self.fail(f"the line has more than {MAX_LINE} bytes: send a shorter question")
                self._discard()
                return
            if not received:
                return

    def _receive(self) -> bytes | None:
        """Some more bytes; none at the end, None where nothing more is read."""
        while not self._closed:
            try:
                if select.select([self._connection], [], [], POLL_SECONDS)[0]:
                    return self._connection.recv(RECEIVED)
            except (OSError, ValueError):  # closed meanwhile, or left
                return None
            self._expire()
            if self.idle_for > IDLE_SECONDS:
                self.fail(f"nothing was asked for {IDLE_SECONDS:g} s: connect again")
                return None
        return None

    def _discard(self) -> None:
        """Read what comes in a moment, up to a bound: unread bytes would cut off what is sent back,
        once the connection is closed."""
        with contextlib.suppress(OSError, ValueError):
            for _ in range(DISCARDED):
                if not select.select([self._connection], [], [], DISCARD_SECONDS)[0]:
                    return
                if not self._connection.recv(RECEIVED):
                    return

    @property
    def idle_for(self) -> float:
        """Seconds since its last line, 0 while an answer is to come."""
        return 0.0 if self._waiting else time.monotonic() - self._asked_last

    def wait_answered(self) -> None:
        """Wait until everything is answered; the client may have closed its sending side only."""
        self._wait(lambda: not self._waiting)

    def _wait(self, enough: Callable[[], bool]) -> None:
        """Wait, forgetting what waits too long, until the client has left."""
        while not (self._closed or enough()):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or enough(), POLL_SECONDS)
            self._expire()
            if self._has_left():
                self.close()

    def _has_left(self) -> bool:
        """Whether both directions are closed on its side."""
        poll = select.poll()
        try:
            poll.register(self._connection, 0)
            return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
        except (OSError, ValueError):
            return True

    # ---- what is sent back ----

    @property
    def takes_timed(self) -> bool:
        """Whether one more question may wait for its time."""
        return len(self._timed) < MAX_TIMED

    def expect(
        self, answer: Future[Answer], has_time: bool, names: dict[str, Any], source: dict[str, Any]
    ) -> None:
        """Send an answer when it comes. names: the id, for an error; source: added to both."""
        with self._changed:
            self._waiting[answer] = time.monotonic()
            if has_time:
                self._timed.add(answer)
        answer.add_done_callback(lambda done: self._answered(done, names, source))
        if self._closed:
            answer.cancel()

    def _answered(
        self, answer: Future[Answer], names: dict[str, Any], source: dict[str, Any]
    ) -> None:
        if answer in self._expired:
            self.fail(f"its time did not come within {WAITING_SECONDS:g} s", names | source)
        elif answer.cancelled():
            self.fail("the run ended before the answer", names | source)
        elif failure := answer.exception():
            self.fail(str(failure), names | source)
        else:
            self.send(timed(answer.result()) | source)
        with self._changed:
            self._waiting.pop(answer, None)
            self._timed.discard(answer)
            self._expired.discard(answer)
            self._changed.notify_all()

    def _expire(self) -> None:
        """Forget the questions that waited too long for their time."""
        limit = time.monotonic() - WAITING_SECONDS
        with self._changed:
            late = [answer for answer in self._timed if self._waiting[answer] < limit]
            self._expired.update(late)
        for answer in late:
            answer.cancel()

    def fail(self, message: str, names: dict[str, Any] | None = None) -> None:
        self.send({"event": "error", **(names or {}), "message": message})

    def send(self, content: dict[str, Any]) -> None:
        data = (without_controls(json.dumps(content, ensure_ascii=False)) + "\n").encode()
        with self._changed:
            if self._closed:
                return
            try:
                whole = self._connection.send(
                    data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                ) == len(data)
            except OSError:
                whole = False
        if not whole:
            self.close()

    def close(self) -> None:
        """Disconnect. Questions that are not answered yet are given up."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waiting = list(self._waiting)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
            self._changed.notify_all()
        for answer in waiting:
            answer.cancel()
