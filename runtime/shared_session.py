"""A thread-safe session, the base of the C API.

It uses the caller's clock in microseconds, orders the frames, and rejects calls after `close`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from queue import SimpleQueue
from typing import Any

from vicort.runtime.core import Answer, Constraint, Frame, Motion, Question, Sampling, Summary
from vicort.runtime.errors import ConfigError, QuestionError, SessionClosed, VicortError
from vicort.runtime.owning_process import OwningProcess
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.sources.packets import DecodedPicture, PacketReader
from vicort.runtime.sources.source import Ending, Wanted

MICROSECONDS = 1_000_000
MAX_GAP_SECONDS = 366 * 86_400  # between two frames; a larger gap is a change of clock


class StreamFinished(VicortError):
    """The stream was finished. It accepts questions, but no frames."""


class TimeOrderError(VicortError):
    """A frame is not later than the previous one, or more than a year later."""


class AnswerStopped(VicortError):
    """The token callback asked to stop."""


@dataclass(frozen=True)
class TimedAnswer:
    """An answer with its times on the caller's clock."""

    answer: Answer
    at_us: int  # time of the question
    # time of the newest frame that it could see; 0 before the first one
    seen_until_us: int


class SharedSession:
    """Every method may be called from any thread. Frames are pushed one at a time."""

    def __init__(
        self, session: Session, sampling: Sampling | None = None, *, on_gpu: bool = False
    ) -> None:
        """sampling: of the answers. on_gpu: whether the engines run on a GPU, so that pictures in
        host memory must be RGB."""
        sampling = sampling or Sampling()
        self.on_gpu = on_gpu
        self._process = OwningProcess()
        self._session = session
        self._sampling = sampling
        self._pushing = threading.Lock()  # guards the next six fields
        # time of the first frame on the caller's clock; None = no frame yet
        self._origin_us: int | None = None
        self._last = Fraction(0)  # time of the newest frame, in seconds since the first
        self._frames = 0
        self._left_out: Callable[[], Any] | None = None  # picture of the newest frame
        self._source_ending: Ending | None = None  # of one that was watched
        self._finished = False
        self._decoding = threading.Lock()  # for packets; acquired before _pushing
        self._packets: PacketReader | None = None
        self._ending = threading.Event()
        self._calls: Counter[int] = Counter()  # thread id -> running calls
        self._left = threading.Condition()  # guards _calls; notified when a call returns

    def push(
        self,
        time_us: int,
        picture: Callable[[], Any],
        motion: Callable[[], Motion | None] = lambda: None,
        *,
        keeps: bool = False,
    ) -> None:
        """Push the frame at time_us, on any clock that rises. `picture` and `motion` return its
        image and motion; they are called only if the frame is sampled. keeps: whether they may be
        called later, too, for a frame that turns out to stay on the screen.

        Raises SessionClosed, StreamFinished, TimeOrderError, and the error of an earlier frame.
        """
        with self._inside(), self._pushing:
            origin = time_us if self._origin_us is None else self._origin_us
            self._check_order(at := Fraction(time_us - origin, MICROSECONDS))
            wanted = self._session.wants(at)
            image = picture() if wanted else None
            self._origin_us = origin
            before, self._last = self._last, at
            self._frames += 1
            left_out, self._left_out = self._left_out, picture if keeps and not wanted else None
            if wanted:
                moved = motion()  # of both, if the one before is taken, too
                if wanted == Wanted.BOTH and left_out:
                    self._session.push(Frame(left_out(), before, self._frames - 2, moved))
                self._session.push(Frame(image, at, self._frames - 1, moved))

    def set_codec(self, codec: str, extradata: bytes = b"") -> None:
        """Set the codec of the following packets, with the arguments of `PacketReader`. Pictures
        that the previous decoder still holds are pushed first.

        Raises SourceError, and the errors of `push`.
        """
        with self._inside(), self._decoding:
            if self._finished:
                raise _finished()
            reader = PacketReader(codec, extradata, motion=self._session.system.wants_motion)
            before, self._packets = self._packets, reader
            if before:
                self._push_all(before.rest())

    def push_packet(self, data: bytes, time_us: int) -> None:
        """Decode one encoded picture, in decoding order, and push the pictures that it completes on
        this thread. time_us: its display time.

        Raises SourceError for a packet that cannot be decoded, ConfigError if no codec was set, and
        the errors of `push`. The next packet may still succeed.
        """
        with self._inside(), self._decoding:
            if self._packets is None:
                raise (
                    _finished()
                    if self._finished
                    else ConfigError("the packets have no codec yet: set one first, such as h264")
                )
            self._push_all(self._packets.read(data, time_us))

    def _push_all(self, pictures: Iterator[DecodedPicture]) -> None:
        """Push all pictures, also after one with a wrong time."""
        late: TimeOrderError | None = None
        for each in pictures:
            try:
                self.push(each.time_us, each.image, each.motion, keeps=True)
            except TimeOrderError as error:
                late = late or error
        if late:
            raise late

    def watch(self, spec: str, pace: float) -> None:
        """Push the frames of a source until it ends. The stream must not have frames yet. pace:
        multiple of the source's speed; 0 = as fast as possible.

        Raises SourceError, and the errors of `push`.
        """
        if not 0 <= pace < float("inf"):
            raise ConfigError(
                f"pace {pace} is not a speed: give 1 for the speed of the source, 2 for twice "
                "that, or 0 for as fast as possible"
            )
        with self._inside(), open_source(spec, motion=self._session.system.wants_motion) as source:
            with self._pushing:
                if self._origin_us is not None:
                    raise TimeOrderError(
                        f"{source.name} begins at time 0, and the stream has frames already: "
                        "open a new session for it"
                    )
                self._origin_us = 0
            wait = self._pacer(pace)
            source.expect(self._session.rate)
            for frame in source.frames(lambda at: self._wants(wait, at)):
                with self._pushing:
                    self._check_order(frame.time)
                    self._last = frame.time
                    self._frames += 1
                    with source.named_in_errors():
                        self._session.push(frame)
            self._source_ending = source.ending

    def finish(self) -> None:
        """End the stream and wait for all work. Raises the error of a frame."""
        with self._inside():
            try:
                with self._decoding:
                    packets, self._packets = self._packets, None
                    if packets:
                        self._push_all(packets.rest())
            finally:
                with self._pushing:
                    self._finished = True
                self._session.finish(self._source_ending)

    def ask(
        self,
        text: str,
        on_token: Callable[[str], bool],
        since_us: int | None = None,
        until_us: int | None = None,
        constraint: Constraint | None = None,
    ) -> TimedAnswer:
        """Ask now and wait for the answer. on_token is called with each piece on this thread; if it
        returns False, the call ends. since_us, until_us: only what was seen from one to the other
        is read, on the clock of the frames; None = no limit. constraint: what the answer may be.

        Raises QuestionError, SessionClosed, AnswerStopped (the answer ends at its next token), and
        the error of the answer.
        """
        if not text.strip():
            raise QuestionError("the question is empty: ask something")
        with self._inside():
            pieces: SimpleQueue[str | None] = SimpleQueue()
            since, until = self._seconds(since_us), self._seconds(until_us)
            question = Question(
                text.strip(),
                self._session.now,
                sampling=self._sampling,
                since=None if since is None else max(since, Fraction(0)),
                until=until,
                constraint=constraint,
            )
            answer = self._session.submit(question, pieces.put)
            answer.add_done_callback(lambda _: pieces.put(None))
            try:
                while (piece := pieces.get()) is not None:
                    if not on_token(piece):
                        raise AnswerStopped("the token callback asked to stop")
            finally:
                answer.cancel()  # no effect on an answer that was given
            self._check_open()  # on_token may have closed it after the last piece
            return self._timed(answer)

    def _seconds(self, time_us: int | None) -> Fraction | None:
        """Seconds of the stream."""
        if time_us is None:
            return None
        return Fraction(time_us - (self._origin_us or 0), MICROSECONDS)

    def summary(self) -> Summary:
        """Statistics of the stream so far."""
        with self._inside():
            return self._session.summary()

    def close(self) -> None:
        """Close the session and wait for the calls of other threads, which fail with SessionClosed.
        A token callback may call this: calls of its own thread are not waited for. Does nothing in
        a forked child."""
        if not self._process.here:
            return
        with self._left:
            self._check_open()
            self._ending.set()
        try:
            self._session.close()
        finally:
            with self._left:
                self._left.wait_for(lambda: not (self._calls.keys() - {threading.get_ident()}))

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Registers a running call, which `close` waits for."""
        self._process.check("a method of the session")
        me = threading.get_ident()
        with self._left:
            self._check_open()
            self._calls[me] += 1
        try:
            yield
        except Exception as error:
            if self._ending.is_set() and not isinstance(error, AnswerStopped):
                raise _closed() from error
            raise
        finally:
            with self._left:
                self._calls[me] -= 1
                self._calls += Counter()  # drops what is at 0
                self._left.notify_all()

    def _check_open(self) -> None:
        if self._ending.is_set():
            raise _closed()

    def _check_order(self, at: Fraction) -> None:
        if self._finished:
            raise _finished()
        if self._origin_us is not None and self._frames and at <= self._last:
            late = int((self._last - at) * MICROSECONDS)
            raise TimeOrderError(
                f"the frame is {late} us before the newest one, or at its time: push frames in "
                "time order"
            )
        if at - self._last > MAX_GAP_SECONDS:
            days = int((at - self._last) / 86_400)
            raise TimeOrderError(
                f"the frame is {days} days after the newest one, and at most 366 are allowed: use "
                "one clock"
            )

    def _wants(self, wait: Callable[[Fraction], None], at: Fraction) -> Wanted:
        """Wait until a frame is due, then return whether it is wanted."""
        wait(at)
        self._check_open()
        return self._session.wants(at)

    def _pacer(self, pace: float) -> Callable[[Fraction], None]:
        """A function that waits until a frame at a given time is due or the session is closed."""
        began: list[float] = []  # monotonic seconds of time 0, once the first frame has come

        def wait(at: Fraction) -> None:
            if pace:
                now, due = time.monotonic(), float(at) / pace
                began[:] = began or [now - due]
                self._ending.wait(max(0.0, began[0] + due - now))

        return wait

    def _timed(self, future: Future[Answer]) -> TimedAnswer:
        answer = future.result()
        origin, seen = self._origin_us or 0, answer.seen_until
        return TimedAnswer(
            answer,
            origin + round(answer.at * MICROSECONDS),
            0 if seen is None else origin + round(seen * MICROSECONDS),
        )


def _finished() -> StreamFinished:
    return StreamFinished("this stream was finished: open a new session for more frames")


def _closed() -> SessionClosed:
    return SessionClosed("the session is closed: open a new one")
