"""A session that any number of threads use, and close, at any moment: what the C API is made of.

It keeps the caller's clock of microseconds, gives frames an order, and lets nobody in after the
close.
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

from vicort.runtime.core import Answer, Frame, Motion, Question, Sampling, Summary
from vicort.runtime.errors import ConfigError, QuestionError, VicortError
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.sources.packets import DecodedPicture, PacketReader

MICROSECONDS = 1_000_000
MAX_GAP_SECONDS = 366 * 86_400  # seconds between two frames: more is another clock


class SessionClosed(VicortError):
    """The session was closed before the call, or while it went on."""


class StreamFinished(VicortError):
    """The stream has ended: questions may come, frames not."""


class TimeOrderError(VicortError):
    """A frame is not after the one before it."""


class AnswerStopped(VicortError):
    """Whoever asked does not want to hear more."""


@dataclass(frozen=True)
class TimedAnswer:
    """An answer, on the caller's clock."""

    answer: Answer
    at_us: int  # when it was asked
    seen_until_us: int  # newest frame that it could see


class SharedSession:
    """All verbs are for any thread; those of frames go one at a time."""

    def __init__(
        self, session: Session, sampling: Sampling | None = None, *, on_gpu: bool = False
    ) -> None:
        """sampling: of its answers. on_gpu: whether its engines run there, so that pictures in the
        host's memory must be RGB."""
        sampling = sampling or Sampling()
        self.on_gpu = on_gpu
        self._session, self._sampling = session, sampling
        self._pushing = threading.Lock()  # of the four below
        # the first frame's time on the caller's clock; None = no frame yet
        self._origin_us: int | None = None
        self._last = Fraction(0)  # time of the newest frame, in seconds since the first
        self._frames = 0
        self._finished = False
        self._decoding = threading.Lock()  # of packets, one at a time; before the lock above
        self._packets: PacketReader | None = None
        self._ending = threading.Event()
        self._calls: Counter[int] = Counter()  # under way, by thread
        self._left = threading.Condition()  # of the calls

    def push(
        self,
        time_us: int,
        picture: Callable[[], Any],
        motion: Callable[[], Motion | None] = lambda: None,
    ) -> None:
        """The frame of that time, on a clock that only needs to rise; `picture` gives its image,
        and is called only if it is sampled, as is `motion`.

        Raises SessionClosed, StreamFinished, TimeOrderError, and what an earlier frame failed with.
        """
        with self._inside(), self._pushing:
            origin = time_us if self._origin_us is None else self._origin_us
            self._check_order(at := Fraction(time_us - origin, MICROSECONDS))
            wanted = self._session.wants(at)
            image = picture() if wanted else None
            self._origin_us, self._last, self._frames = origin, at, self._frames + 1
            if wanted:
                self._session.push(Frame(image, at, self._frames - 1, motion()))

    def set_codec(self, codec: str, extradata: bytes = b"") -> None:
        """What the packets that follow are of, as `PacketReader` has it; pictures that an earlier
        codec holds back are pushed first.

        Raises SourceError, and what `push` raises.
        """
        with self._inside(), self._decoding:
            if self._finished:
                raise _finished()
            reader = PacketReader(codec, extradata, motion=self._session.system.wants_motion)
            before, self._packets = self._packets, reader
            if before:
                self._push_all(before.rest())

    def push_packet(self, data: bytes, time_us: int) -> None:
        """One encoded picture, in the order of decoding, and when it is shown; what it completes is
        decoded and pushed on this thread.

        Raises SourceError for a packet that cannot be decoded, ConfigError if no codec was set, and
        what `push` raises; the next packet may be good.
        """
        with self._inside(), self._decoding:
            if self._packets is None:
                raise (
                    _finished()
                    if self._finished
                    else ConfigError("the packets have no codec yet: set it first, as h264")
                )
            self._push_all(self._packets.read(data, time_us))

    def _push_all(self, pictures: Iterator[DecodedPicture]) -> None:
        """One that comes too late keeps back no other."""
        late: TimeOrderError | None = None
        for each in pictures:
            try:
                self.push(each.time_us, each.image, each.motion)
            except TimeOrderError as error:
                late = late or error
        if late:
            raise late

    def watch(self, spec: str, pace: float) -> None:
        """Push a source's frames until it ends; its first frame is the stream's first. pace: times
        its own speed, 0 = as fast as it goes.

        Raises SourceError, and what `push` raises.
        """
        if not 0 <= pace < float("inf"):
            raise ConfigError(
                f"pace {pace} is no speed: give 1 for the source's own, 2 for twice that, or 0 "
                "for as fast as it goes"
            )
        with self._inside(), open_source(spec, motion=self._session.system.wants_motion) as source:
            with self._pushing:
                if self._origin_us is not None:
                    raise TimeOrderError(
                        f"{source.name} begins at time 0, and the stream has frames already: "
                        "open a session for it"
                    )
                self._origin_us = 0
            wait = self._pacer(pace)
            for frame in source.frames(lambda at: self._sees(wait, at)):
                with self._pushing:
                    self._check_order(frame.time)
                    self._last, self._frames = frame.time, self._frames + 1
                    self._session.push(frame)

    def finish(self) -> None:
        """End of the stream; waits for what is under way. Raises what a frame or an answer failed
        with."""
        with self._inside():
            try:
                with self._decoding:
                    packets, self._packets = self._packets, None
                    if packets:
                        self._push_all(packets.rest())
            finally:
                with self._pushing:
                    self._finished = True
                self._session.finish()

    def ask(self, text: str, on_token: Callable[[str], bool]) -> TimedAnswer:
        """Ask now, and wait. on_token gets each piece on this thread, and says whether to go on.

        Raises QuestionError, SessionClosed, AnswerStopped (the answer is made to its end all the
        same), and what the answer failed with.
        """
        if not text.strip():
            raise QuestionError("the question is empty: ask something")
        with self._inside():
            pieces: SimpleQueue[str | None] = SimpleQueue()
            answer = self._session.submit(
                Question(text.strip(), self._session.now, sampling=self._sampling), pieces.put
            )
            answer.add_done_callback(lambda _: pieces.put(None))
            while (piece := pieces.get()) is not None:
                if not on_token(piece):
                    raise AnswerStopped("the token callback asked to stop")
            self._check_open()  # closed from on_token, the answer may be whole all the same
            return self._heard(answer)

    def summary(self) -> Summary:
        """The stream so far."""
        with self._inside():
            return self._session.summary()

    def close(self) -> None:
        """Other threads' calls end with SessionClosed, and are waited for; those of this thread,
        whose callback this is, are not."""
        with self._left:
            self._check_open()
            self._ending.set()
        self._session.close()
        with self._left:
            self._left.wait_for(lambda: not (self._calls.keys() - {threading.get_ident()}))

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """A call under way, which a close ends."""
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
                "the order of their times"
            )
        if at - self._last > MAX_GAP_SECONDS:
            days = int((at - self._last) / 86_400)
            raise TimeOrderError(
                f"the frame is {days} days after the newest one, and at most 366 may lie "
                "between: keep to one clock"
            )

    def _sees(self, wait: Callable[[Fraction], None], at: Fraction) -> bool:
        """Whether a source's frame is wanted, when its time has come."""
        wait(at)
        self._check_open()
        return self._session.wants(at)

    def _pacer(self, pace: float) -> Callable[[Fraction], None]:
        """Waits until a frame of that time is due, or the session is closed."""
        began = time.monotonic()

        def wait(at: Fraction) -> None:
            if pace:
                self._ending.wait(max(0.0, began + float(at) / pace - time.monotonic()))

        return wait

    def _heard(self, answer: Future) -> TimedAnswer:
        given: Answer = answer.result()
        origin = self._origin_us or 0
        return TimedAnswer(
            given,
            origin + round(given.at * MICROSECONDS),
            origin + round(given.seen_until * MICROSECONDS),
        )


def _finished() -> StreamFinished:
    return StreamFinished("this stream was finished: open a new session for more frames")


def _closed() -> SessionClosed:
    return SessionClosed("the session is closed: open a new one")
