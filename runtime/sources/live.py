"""A live source that reconnects when it breaks off, with one continuous clock."""

from __future__ import annotations

import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial

from vicort.runtime.core import Frame, SourceEvent, SourceState
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.redact import redact
from vicort.runtime.sources.clock import MIN_STEP
from vicort.runtime.sources.source import Ending, Source, Wanted, Wants, Warn

logger = logging.getLogger(__name__)

# seconds: timestamps that run ahead of the wall clock by more than this are a clock reset
JUMP = Fraction(10)
MAX_WARNINGS = 100
OnState = Callable[[SourceEvent], None]


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries of network sources. Times in seconds."""

    open_timeout: float = 10.0
    # for the next packet and the next picture; None = 10, or 30 for HLS, which arrives in segments
    read_timeout: float | None = None
    first_delay: float = 0.5  # before the first attempt; doubled for each further one
    max_delay: float = 30.0
    # a connection that delivered frames for this long resets the number of attempts
    steady: float = 10.0
    attempts: int | None = None  # maximum in a row; None = unlimited

    def timeouts(self, url: str) -> tuple[float, float]:
        """The timeouts for opening and for reading."""
        path = re.split(r"[?#]", url, maxsplit=1)[0]
        segments = "://" in url and path.lower().endswith(".m3u8")
        return self.open_timeout, self.read_timeout or (30.0 if segments else 10.0)

    def delay(self, attempt: int, jitter: float) -> float:
        """Delay before attempt 1, 2, … with jitter in [0, 1), which spreads the reconnections of
        several cameras."""
        whole = min(self.max_delay, self.first_delay * 2.0 ** min(attempt - 1, 60))
        return whole * (0.5 + jitter / 2)


class LiveSource(Source):
    """A URL or a camera. It is reopened after its end, an error or a timeout.

    Frame times rise over all connections. A gap between two connections has its length in wall
    time.
    """

    keeps_wall_clock = True

    def __init__(
        self,
        name: str,
        open_one: Callable[[], Source],
        *,
        first: Source | None = None,
        patience: Patience,
        on_state: OnState | None = None,
        warn: Warn | None = None,
    ) -> None:
        """open_one: opens a connection, or raises SourceError. first: a connection that is open
        already; None = `frames` opens the first one, and retries it like later ones. on_state:
        called on the reading thread.
        """
        super().__init__(name, live=True, warn=warn)
        self._source = first
        self._open_one = open_one
        self._patience = patience
        self._on_state = on_state or (lambda event: None)
        self._endless: bool | None = None  # None = not opened yet
        if first:
            self.warnings.extend(first.warnings)
            self._endless = first.duration is None
        self._stopping = threading.Event()
        self._attempts = 0  # in a row
        self._time: Fraction | None = None  # of the newest frame
        self._index = -1
        # of the newest frame of this connection; None = no frame yet
        self._stamp: Fraction | None = None
        self._before = (Fraction(0), 0)  # time and index of the frame before the newest
        # monotonic_ns of the newest frame, and of the first frame of this connection
        self._wall = self._since = 0
        self._size: tuple[int, ...] | None = None  # height, width

    def warn(self, line: str) -> None:
        super().warn(line)
        del self.warnings[:-MAX_WARNINGS]  # a stream may run for days

    def stop(self) -> None:
        """End at the next frame or before the next attempt. May be called from any thread."""
        self._stopping.set()
        if source := self._source:
            source.stop()

    def close(self) -> None:
        self.stop()
        if self._source:
            self._source.close()

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        source = self._source or self._first()
        while source:
            reason = yield from self._watch(source, wants)
            source.close()
            source = None if self._stopping.is_set() else self._reconnect(reason)

    def _first(self) -> Source | None:
        """Open the first connection, with retries; None if the source is stopped before."""
        try:
            return self._opened()
        except SourceError as error:
            self.warn(f"{error} (retrying)")
            return self._reconnect(error.brief)

    def _opened(self) -> Source | None:
        """Open another connection; None if the stream has ended. Raises SourceError."""
        source = self._source = self._open_one()
        if self._stopping.is_set():
            source.close()
            return None
        # the broadcast ended, and its URL now serves a recording
        if self._endless and source.duration is not None:
            self._report("ended", f"it is a recording of {float(source.duration):.3f} s now")
            return None
        if self._endless is None:
            self._endless = source.duration is None
        return source

    def _watch(self, source: Source, wants: Wants | None) -> Generator[Frame, None, str]:
        """Yield the frames of one connection; returns why it ended."""
        self._stamp = None
        try:
            for frame in source.frames(partial(self._wants, wants)):
                if self._stopping.is_set():
                    return "stopped"
                if self.ending and self.ending.frame:  # of the connection before
                    yield self.ending.frame
                    self.ending = None
                self._see_size(tuple(frame.image.shape[:2]))
                is_newest = frame.time == self._stamp
                time, index = (self._now, self._index) if is_newest else self._before
                yield replace(frame, time=time, index=index)
        except SourceError as error:
            return error.brief
        finally:
            self._see_ending(source)
        return getattr(source, "stopped", None) or "the stream ended"

    def _wants(self, wants: Wants | None, stamp: Fraction) -> Wanted | bool:
        """Called for every frame of a connection. stamp: its time within the connection."""
        now = time.monotonic_ns()
        connected = self._stamp is None
        if connected:
            self._since = now
        self._before = self._now, self._index
        self._time = self._next_time(stamp, now)
        self._stamp, self._wall, self._index = stamp, now, self._index + 1
        if connected:
            self._report("connected", "")
        # when stopped, the next frame must arrive in `_watch`, which then ends
        wanted = self._stopping.is_set() or wants is None or wants(self._time)
        if not connected or wanted != Wanted.BOTH:
            self.ending = None
        return wanted

    def _see_ending(self, source: Source) -> None:
        """Keep how a connection ended, on the clock of all of them."""
        if source.ending and source.ending.frame and self._stamp is not None:
            frame = replace(source.ending.frame, time=self._now, index=self._index)
            self.ending = Ending(frame, self._now + source.ending.time - self._stamp)

    def _next_time(self, stamp: Fraction, now: int) -> Fraction:
        if self._time is None:
            self.began = datetime.now(UTC)
            return Fraction(0)
        passed = max(MIN_STEP, Fraction((now - self._wall) // 1000, 10**6))
        if self._stamp is None or getattr(self._source, "untimed", False):
            # whole microseconds, or the denominators of all connections would be multiplied
            return Fraction(math.floor((self._time + passed) * 10**6), 10**6)
        step = stamp - self._stamp
        if step > passed + JUMP:
            self.warn(
                f"{self.name}: timestamps jump ahead by {float(step):.3f} s at "
                f"{float(self._time):.3f} s: the wall clock is used instead"
            )
            step = passed
        return self._time + step

    def _see_size(self, size: tuple[int, ...]) -> None:
        before, self._size = self._size, size
        if before is not None and before != size:
            self._report("resized", f"{before[1]}x{before[0]} to {size[1]}x{size[0]}")

    def _reconnect(self, reason: str) -> Source | None:
        """Wait and reopen until it succeeds; None if the stream has ended."""
        delivered = self._stamp is not None  # whether the last connection delivered frames
        if delivered:
            self._report("lost", reason)
        if delivered and time.monotonic_ns() - self._since >= self._patience.steady * 1e9:
            self._attempts = 0
        while self._patience.attempts is None or self._attempts < self._patience.attempts:
            self._attempts += 1
            self._report("reconnecting", reason)
            if self._stopping.wait(self._patience.delay(self._attempts, random.random())):
                return None
            try:
                return self._opened()
            except SourceError as error:
                reason = error.brief
        self._report("given-up", reason)
        raise TruncatedSource(
            f"{self.name} is gone ({self._attempts} attempts, {redact(reason)}): see what it is "
            f"with `ffprobe {self.name}`"
        )

    @property
    def _now(self) -> Fraction:
        return self._time or Fraction(0)

    def _report(self, state: SourceState, reason: str) -> None:
        logger.info("%s is %s %s", self.name, state, redact(reason))
        self._on_state(SourceEvent(state, self._now, redact(reason), self._attempts))
