"""A source that a decoder process opens and reads, within limits of memory and time."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NoReturn

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources.decoder_host import HOST
from vicort.runtime.sources.decoder_link import ENDED, LinkClosed
from vicort.runtime.sources.frame_ring import FrameRing
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.source import Ending, Source, Wanted, Wants, Warn

logger = logging.getLogger(__name__)

TIME_IS_UP = -27  # exit code of SIGPROF
SETTLE = 8  # pictures that are judged before the process hears of it
REPORT_SECONDS = 2.0  # to hear how a process died


@dataclass(frozen=True)
class Silence:
    """How long a decoder process may be silent, in seconds; None = for ever."""

    opening: float | None
    reading: float | None
    advice: str  # for the error text


def surroundings(limits: Limits) -> dict[str, Any]:
    """What a decoder process has to know of this one."""
    return {
        "folder": os.getcwd(),
        "limits": vars(limits),
        "log_level": logging.getLogger("vicort").getEffectiveLevel(),
    }


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
        # of announced pictures that were not judged yet: time, and the frame if it came unasked
        self._times: deque[tuple[Fraction, Frame | None]] = deque()
        self._judged = self._settled = 0  # pictures so far; of these the process knows
        self._time = Fraction(0)  # of the newest that was judged
        self._ahead = False  # whether the process sends frames before they are asked for
        self._expected: tuple[float | None, ...] = ()  # at which frames will be wanted, if known
        self._stopping = self._closed = self._reading = False
        request |= surroundings(limits)
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
            self._link.send("read", *self._expected)
            yield from self._frames(wants)
            self.close()
        except LinkClosed as error:
            logger.debug("%s: %s", self.name, error)
            if not self._stopping:
                self._fail_as_died(None, str(error))
        finally:
            self._reading = False
            if self._closed:
                self._link.close()

    def expect(self, rate: float | None) -> None:
        self._expected = (rate,)

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
        self._lifeline.close()
        if not self._reading:
            self._link.close()

    def _open(self, request: dict[str, Any], files: Sequence[int]) -> None:
        try:
            opened = self._next("opened")
        except LinkClosed as error:  # without a report of how it died: the server has ended too
            logger.info("%s: %s; it is opened by another decoder process", self.name, error)
            self._link.close()
            self._lifeline.close()
            self._link, self._lifeline = HOST.open(request, files)
            opened = self._next_or_fail("opened")
        _, name, live, total, length, untimed, ahead = opened
        self.name, self.live, self.untimed = str(name), bool(live), bool(untimed)
        self._ahead = bool(ahead)
        self.frames_total = None if total is None else int(total)
        self.duration = None if length is None else Fraction(*map(int, length))

    def _frames(self, wants: Wants | None) -> Iterator[Frame]:
        while True:
            while self._times:
                (at, frame), number = self._times.popleft(), self._judged
                wanted = wants is None or wants(at)
                if wanted == Wanted.BOTH and (before := self._ask_for("before", number - 1)):
                    yield replace(before, time=self._time)
                    del before  # frees its slot
                frame = (frame or self._ask_for("take", number)) if wanted else None
                self._judged, self._time = number + 1, at
                if frame:
                    yield replace(frame, time=at)
                    del frame
                if self._judged - self._settled >= SETTLE:
                    self._settle()
            self._settle()
            message = self._next("times", "ending", "end")
            if message[0] == "end":
                self.stopped = None if message[1] is None else str(message[1])
                return
            self._see(message)

    def _see(self, message: list[Any]) -> None:
        """Keep what was announced, with the frames that came with it."""
        try:
            if message[0] == "ending":
                end = Fraction(*map(int, message[1:]))
                frame = self._ask_for("before", self._judged - 1)
                self.ending = Ending(frame and replace(frame, time=self._time), end)
                return
            self._times.extend(
                (Fraction(int(top), int(bottom)), written and self._read(written))
                for top, bottom, written in message[1:]
            )
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise LinkClosed(str(error)) from error

    def _read(self, written: list[Any]) -> Frame:
        if self._ring is None:
            raise ValueError("a frame without a ring")
        index, slot, *picture = written
        image, motion = self._ring.read(slot, *picture)
        return Frame(image, Fraction(0), int(index), motion)

    def _ask_for(self, kind: Literal["take", "before"], number: int) -> Frame | None:
        """The frame of a picture; None if it cannot be had."""
        ring = self._ring
        given = (ring.number, ring.give(last=True)) if ring else (0, 0)
        self._link.send(kind, number, *given)
        while True:
            message = self._next("times", "frame", "none")
            if message[0] == "none":
                return None
            if message[0] == "times":
                self._see(message)
                continue
            try:
                _, found, written = message
                if found == number:
                    return self._read(written)
                raise ValueError(f"picture {found} instead of {number}")
            except (TypeError, ValueError) as error:
                raise LinkClosed(str(error)) from error

    def _settle(self) -> None:
        """Tell which pictures are judged, and give slots for those to come."""
        if self._judged > self._settled:
            ring, slots = self._ring, list[int]()
            while self._ahead and ring and (slot := ring.give()) is not None:
                slots.append(slot)
            self._link.send("settled", self._judged, ring.number if ring else 0, slots)
            self._settled = self._judged

    def _next_or_fail(self, *kinds: str) -> list[Any]:
        try:
            return self._next(*kinds)
        except LinkClosed as error:
            self._fail_as_died(None, str(error))

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

    def _fail_as_died(self, code: int | None, why: str = "") -> NoReturn:
        """why: what the link said, where the process may live on."""
        if code is None:
            code = self._last_report()
        if code == TIME_IS_UP:
            self._fail(
                f"{self._limits.seconds:g} s of processor time gave no picture: allow more with "
                "`--max-decode-time`",
                "no picture in time",
            )
        if code == 0 or code is None:
            what = (
                f"the link to the decoder process broke ({why})"
                if why and why != ENDED
                else "the decoder process ended by itself"
                if code == 0
                else "something ended the decoder process and the server that started it"
            )
            self._fail(
                f"{what}: try again, or decode in this process with --in-process",
                "the decoder process has ended",
            )
        if code == -signal.SIGKILL:
            self._fail(
                "the decoder process was killed, as the system does where memory runs out: see "
                "`dmesg`, free memory or watch fewer streams",
                "the decoder process was killed",
            )
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
                if message[0] == "failed":
                    self._fail_as_told(*map(str, message[1:]))
                if message[0] == "died" and isinstance(message[1], int):
                    return message[1]
        return None
