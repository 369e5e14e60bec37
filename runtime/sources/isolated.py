"""A source that a decoder process opens and reads, within limits of memory and time."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources.decoder_host import HOST
from vicort.runtime.sources.decoder_link import LinkClosed
from vicort.runtime.sources.frame_ring import FrameRing
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.source import Source, Wants, Warn

logger = logging.getLogger(__name__)

TIME_IS_UP = -27  # exit code of SIGPROF
REPORT_SECONDS = 2.0  # to hear how a process died


@dataclass(frozen=True)
class Silence:
    """How long a decoder process may be silent, in seconds; None = for ever."""

    opening: float | None
    reading: float | None
    advice: str  # for the error text


class IsolatedSource(Source):
    """Reads like the source that the decoder process opens, and bit for bit the same frames.

    If that process dies, only this source ends, with a SourceError.
    """

    def __init__(
        self,
        name: str,
        request: dict[str, Any],
        *,
        files: Sequence[int] = (),
        limits: Limits,
        silence: Silence,
        warn: Warn | None = None,
    ) -> None:
        """name: of the source in errors. request: for `decoder_worker`. files: passed to it.
        silence: of the process.

        Raises SourceError if the source cannot be opened within the limits.
        """
        super().__init__(name, warn=warn)
        self.untimed = False
        self.stopped: str | None = None
        self._limits = limits
        self._seconds = silence.opening
        self._advice = silence.advice
        self._ring: FrameRing | None = None
        self._times: deque[Fraction] = deque()  # of pictures that nobody was asked about yet
        self._stopping = self._closed = self._reading = False
        request |= {
            "folder": os.getcwd(),
            "limits": vars(limits),
            "log_level": logging.getLogger("vicort").getEffectiveLevel(),
        }
        self._link, self._lifeline = HOST.open(request, files)
        try:
            self._open(request, files)
        except BaseException:
            self.close()
            raise
        self._seconds = silence.reading

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        if self._closed:
            return
        self._reading = True
        try:
            self._link.send("read")
            yield from self._frames(wants)
        except LinkClosed:
            if not self._stopping:
                self._fail_as_died(None)
        finally:
            self._reading = False
            if self._closed:
                self._link.close()

    def stop(self) -> None:
        """End now: a thread that waits for a frame gets none. From any thread."""
        self._stopping = True
        self._link.hang_up()

    def close(self) -> None:
        """End the process. A thread that reads frames gets no more."""
        if self._closed:
            return
        self.stop()
        self._closed = True
        os.close(self._lifeline)
        if not self._reading:
            self._link.close()

    def _open(self, request: dict[str, Any], files: Sequence[int]) -> None:
        try:
            opened = self._next("opened")
        except LinkClosed:  # without a report of how it died: the server has ended too
            self._link.close()
            os.close(self._lifeline)
            self._link, self._lifeline = HOST.open(request, files)
            opened = self._next_or_fail("opened")
        _, name, live, total, length, untimed = opened
        self.name, self.live, self.untimed = str(name), bool(live), bool(untimed)
        self.frames_total = None if total is None else int(total)
        self.duration = None if length is None else Fraction(*map(int, length))

    def _frames(self, wants: Wants | None) -> Iterator[Frame]:
        awaited: Fraction | None = None
        while True:
            awaited = self._answer(wants) if awaited is None else awaited
            message = self._next("times", "frame", "none", "end")
            if message[0] == "end":
                self.stopped = None if message[1] is None else str(message[1])
                return
            if message[0] == "times":
                self._times.extend(Fraction(int(top), int(bottom)) for top, bottom in message[1:])
                continue
            at, awaited = awaited, None
            if message[0] == "frame":
                yield self._frame(at, *message[1:])

    def _answer(self, wants: Wants | None) -> Fraction | None:
        """Say which of the announced pictures is wanted; returns its time."""
        skipped = 0
        while self._times:
            at = self._times.popleft()
            if wants is None or wants(at):
                self._link.send("take", skipped, self._ring.next_slot if self._ring else 0)
                return at
            skipped += 1
        if skipped:
            self._link.send("take", skipped, -1)
        return None

    def _frame(self, at: Fraction | None, index: Any, slot: Any, *picture: Any) -> Frame:
        if at is None or self._ring is None:
            raise LinkClosed("a frame that nobody asked for")
        try:
            image, motion = self._ring.read(slot, *picture)
            return Frame(image, at, int(index), motion)
        except (TypeError, ValueError) as error:
            raise LinkClosed(str(error)) from error

    def _next_or_fail(self, *kinds: str) -> list[Any]:
        try:
            return self._next(*kinds)
        except LinkClosed:
            self._fail_as_died(None)

    def _next(self, *kinds: str) -> list[Any]:
        """The next message of one of these kinds. Others are dealt with here."""
        limit = None if self._seconds is None else time.monotonic() + self._seconds
        while True:
            if limit is not None and not self._link.ready(limit - time.monotonic()):
                self._fail(
                    f"nothing came in {self._seconds:g} s: {self._advice}", "nothing came in time"
                )
            message, files = self._link.receive()
            kind = message[0]
            try:
                if kind in kinds:
                    return message
                if kind == "ring" and len(files) == 1:
                    self._ring = FrameRing(files.pop(), *message[1:])
                elif kind == "warning":
                    self.warn(str(message[1]))
                elif kind == "log":
                    logging.getLogger(str(message[2])).log(int(message[1]), "%s", message[3])
                elif kind == "failed":
                    self._fail_as_told(*map(str, message[1:]))
                elif kind == "died":
                    self._fail_as_died(int(message[1]))
                else:
                    raise LinkClosed(f"an unknown message {kind!r}")
            except (TypeError, ValueError, IndexError, OSError) as error:
                raise LinkClosed(str(error)) from error
            finally:
                for file in files:
                    os.close(file)

    def _fail_as_told(self, kind: str, line: str, brief: str) -> NoReturn:
        if kind == "truncated":
            raise TruncatedSource(line, brief)
        if kind == "source":
            raise SourceError(line, brief)
        if kind == "memory":
            self._fail_for_memory()
        self._fail(f"the decoder failed: {line}", "the decoder failed")

    def _fail_as_died(self, code: int | None) -> NoReturn:
        if code is None:
            code = self._last_report()
        if code == TIME_IS_UP:
            self._fail(
                f"{self._limits.seconds:g} s of processor time gave no picture: allow more with "
                "`--max-decode-time`",
                "no picture in time",
            )
        if code == 0 or code is None:
            self._fail("the decoder process has ended", "the decoder process has ended")
        self._fail(
            f"the decoder process died (exit code {code}); if it needs more than "
            f"{self._limits.decoding_bytes / 1e6:.0f} MB, allow them with `--max-decode-memory`",
            "the decoder process died",
        )

    def _fail_for_memory(self) -> NoReturn:
        self._fail(
            f"it needs more than {self._limits.decoding_bytes / 1e6:.0f} MB to decode: allow more "
            "with `--max-decode-memory`",
            "it needs too much memory",
        )

    def _fail(self, why: str, brief: str) -> NoReturn:
        raise SourceError(f"{self.name} cannot be read: {why}", brief)

    def _last_report(self) -> int | None:
        """How the process died, if that is still to be heard."""
        with suppress(LinkClosed):
            while self._link.ready(REPORT_SECONDS):
                message, _ = self._link.receive()
                if message[0] == "died" and isinstance(message[1], int):
                    return message[1]
        return None
