"""A URL that serves one picture for each request, as cameras do, watched by asking again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

from vicort.runtime.core import Frame
from vicort.runtime.sources.clock import MIN_STEP
from vicort.runtime.sources.container import ContainerSource
from vicort.runtime.sources.source import Source, Wants, Warn

PICTURE_FORMATS = ("jpeg_pipe", "png_pipe")

MAX_WARNINGS = 100


class SnapshotSource(Source):
    """One connection: it asks for a picture at each tick, until a request fails.

    The ticks are at start + k / fps and do not drift. A tick that passes while the server still
    answers is left out. A frame has the time at which its picture was complete, in whole
    microseconds since the first one.

    A first answer of several pictures is no snapshot but a stream, whose end is the end. So is the
    end of the first answer where no more are asked for.
    """

    untimed = True  # LiveSource takes the wall clock, which goes on between connections

    def __init__(
        self,
        first: ContainerSource,
        again: Callable[[Warn], ContainerSource] | None,
        fps: Fraction,
        *,
        warn: Warn | None = None,
    ) -> None:
        """first: the answer to the first request. again: makes another one, with a callback for
        warnings, and raises SourceError; None = the source is what the first one serves. fps:
        requests a second."""
        super().__init__(first.name, live=again is not None, warn=warn)
        self.warnings.extend(first.warnings)
        self._answer = first
        self._again = again
        self._interval = 1 / fps
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._time: Fraction | None = None  # of the newest frame
        self._first_time = 0.0  # by the clock
        self._index = -1
        self.stopped: str | None = None

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        before = self._index
        yield from self._pictures(self._answer, wants)
        self.stopped = self._answer.stopped
        if self._again is None or self._index - before != 1:
            return
        self.stopped = None
        while self._wait():
            self._answer.close()
            self._answer = self._again(self._warn_once)
            yield from self._pictures(self._answer, wants, most=1)

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        self.stop()
        self._answer.close()

    def _pictures(
        self, answer: ContainerSource, wants: Wants | None, most: int | None = None
    ) -> Iterator[Frame]:
        """The frames of one answer, at most that many."""
        for count, picture in enumerate(answer.pictures(), 1):
            if self._stopping.is_set():
                return
            at = self._next_time()
            self._index += 1
            if wants is None or wants(at):
                image = picture.decoder.convert(picture.picture)
                yield Frame(image, at, self._index)
            if count == most:
                return

    def _next_time(self) -> Fraction:
        now = time.monotonic()
        if self._time is None:
            self._first_time, self._time = now, Fraction(0)
        else:
            passed = Fraction(math.floor((now - self._first_time) * 10**6), 10**6)
            self._time = max(self._time + MIN_STEP, passed)
        return self._time

    def _warn_once(self, line: str) -> None:
        """Every picture may be damaged in the same way."""
        if line not in self.warnings:
            self.warn(line)
            del self.warnings[:-MAX_WARNINGS]

    def _wait(self) -> bool:
        """Wait for the next tick; False if the source is stopped before."""
        passed = Fraction(time.monotonic() - self._began)
        tick = math.floor(passed / self._interval) + 1
        return not self._stopping.wait(float(tick * self._interval - passed))


def shows_pictures(source: ContainerSource) -> bool:
    """Whether an answer is in a format of still pictures, one or several in a row."""
    return source.video.container.format.name in PICTURE_FORMATS
