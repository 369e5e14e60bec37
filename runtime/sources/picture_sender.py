"""Announces the pictures of a source to the program, and sends the frames that it wants."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, cast

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError
from vicort.runtime.sources.container import ContainerSource, TimedPicture
from vicort.runtime.sources.decoder_link import Link
from vicort.runtime.sources.frame_ring import FrameRing, new_ring, slot_bytes
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.sources.source import Ending, Source, Wanted

AHEAD_BYTES = 48 << 20  # of decoded pictures that were not judged yet
MAX_AHEAD = 32  # of these
ANNOUNCED = 4  # pictures in a message

Predict = Callable[[Fraction], bool]  # whether a picture at that time will be taken


class PictureSender:
    """The program judges the pictures in order: it takes one, or settles that all before a number
    are done with."""

    def __init__(self, link: Link, rearm: Callable[[], None]) -> None:
        """rearm: called before each step that may take long."""
        self._link = link
        self._rearm = rearm
        self._ring: FrameRing | None = None
        self._slots: deque[int] = deque()  # that the program gave for frames to come
        self._announced: list[list[Any]] = []  # of pictures that the program does not know yet

    def send_one_by_one(self, source: Source) -> None:
        """Each picture is judged before the next one is decoded."""
        count, newest, wanted = 0, Fraction(0), Wanted.NO

        def wants(time: Fraction) -> Wanted:
            nonlocal count, newest, wanted
            self._send_none(count - 1, wanted)  # the source cannot use what was wanted
            self._announce(time, None)
            self._tell()
            count, newest = count + 1, time
            wanted = self._judged(count - 1)
            return wanted

        try:
            for frame in source.frames(wants):
                if frame.time != newest:  # the one before, which is wanted, too
                    self._send(count - 2, frame)
                    wanted = self._judged(count - 1)
                    continue
                if wanted == Wanted.BOTH:
                    self._link.send("none")
                    self._judged(count - 1)
                wanted = Wanted.NO
                self._send(count - 1, frame)
            self._send_none(count - 1, wanted)
        finally:
            if source.ending and source.ending.frame:
                self._send_ending(count - 1, source.ending)

    def _judged(self, number: int) -> Wanted:
        """Wait until the program has judged a picture, all before which are done with."""
        while True:
            (kind, settled, ring, slot), _ = self._link.receive()
            if kind in ("take", "before"):
                if self._ring and ring == self._ring.number:
                    self._slots.append(slot)
                self._rearm()
                return Wanted.YES if kind == "take" else Wanted.BOTH
            if settled > number:
                self._rearm()
                return Wanted.NO

    def _send_none(self, number: int, wanted: Wanted) -> None:
        """Nothing comes of a picture, or of two, that the program waits for."""
        if wanted == Wanted.BOTH:
            self._link.send("none")
            self._judged(number)
        if wanted:
            self._link.send("none")

    def _send_ending(self, number: int, ending: Ending) -> None:
        """number: of the last picture, which was not wanted."""
        self._link.send("ending", ending.time.numerator, ending.time.denominator)
        if ending.frame and self._judged(number) == Wanted.BOTH:
            self._send(number, ending.frame)

    def send_ahead(self, source: ContainerSource, predict: Predict | None) -> None:
        """Decode on while the program judges. predict: whether a picture will be taken, so that its
        frame is sent before it is asked for; None = never."""
        pictures = _Pictures(source.pictures(), _ahead(source))
        while True:
            busy = pictures.has_room
            if busy and not self._link.ready(0):
                self._rearm()
                if picture := pictures.decode():
                    self._announce(picture.time, self._early(picture, predict, pictures))
                if picture is None or not pictures.has_room or len(self._announced) >= ANNOUNCED:
                    self._tell()
                continue
            if not busy and not pictures.waiting:
                break
            self._hear(pictures)
        if pictures.left_out:
            self._send_ending(pictures.newest, source.ending_with(pictures.left_out))
        if pictures.failure:
            raise pictures.failure

    def _hear(self, pictures: _Pictures) -> None:
        (kind, number, ring, given), _ = self._link.receive()
        self._rearm()
        ours = self._ring and ring == self._ring.number
        if kind == "settled":
            pictures.settle_before(number)
            self._slots.extend(given if ours else ())
            return
        if ours:
            self._slots.appendleft(given)
        if kind == "take":
            pictures.settle_before(number)
            self._send(number, pictures.take())
        else:  # the one before, once more
            pictures.settle_before(number + 1)
            left_out = pictures.left_out
            self._send(number, left_out.frame()) if left_out else self._link.send("none")

    def _early(
        self, picture: TimedPicture, predict: Predict | None, pictures: _Pictures
    ) -> Frame | None:
        """The frame of the newest picture, if it is likely to be taken and there is a slot."""
        if predict and predict(picture.time) and self._ring and self._slots:
            frame = picture.frame()
            if _size(frame) <= self._ring.size:
                return frame
            pictures.keep(frame)
        return None

    def _announce(self, time: Fraction, frame: Frame | None) -> None:
        """frame: if it is sent without being asked for."""
        written = self._written(frame) if frame else None
        self._announced.append([time.numerator, time.denominator, written])

    def _tell(self) -> None:
        if self._announced:
            self._link.send("times", *self._announced)
            self._announced.clear()

    def _send(self, number: int, frame: Frame) -> None:
        size = _size(frame)
        if self._ring is None or self._ring.size < size:
            self._tell()  # what was written to the ring before
            before = self._ring.number if self._ring else 0
            self._ring = None  # so that its memory is not needed twice
            self._slots.clear()
            self._ring, file = new_ring(size, before + 1)
            self._slots.append(0)
            ring = self._ring
            self._link.send("ring", ring.size, ring.slots, ring.number, files=[file])
            os.close(file)
        self._link.send("frame", number, self._written(frame))

    def _written(self, frame: Frame) -> list[Any]:
        """Write a frame to a slot; returns what the program needs to read it."""
        ring, slot = cast(FrameRing, self._ring), self._slots.popleft()
        return [frame.index, slot, *ring.write(slot, frame.image, frame.motion)]


class _Pictures:
    """Decoded pictures that wait to be judged."""

    def __init__(self, pictures: Iterator[TimedPicture], most: int) -> None:
        self._pictures = pictures
        self._most = most
        self._waiting: deque[TimedPicture] = deque()
        self._first = 0  # number of the first of these
        self._kept: tuple[int, Frame] | None = None  # a frame that is converted, by number
        self._more = True
        self.left_out: TimedPicture | None = None  # the newest that was judged, if not taken
        self.failure: SourceError | None = None  # to be raised when all are judged

    @property
    def has_room(self) -> bool:
        return self._more and len(self._waiting) < self._most

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def newest(self) -> int:
        return self._first + len(self._waiting) - 1

    def decode(self) -> TimedPicture | None:
        """The next picture; None at the end."""
        try:
            picture = next(self._pictures, None)
        except SourceError as error:
            self.failure, picture = error, None
        if picture is None:
            self._more = False
        else:
            self._waiting.append(picture)
        return picture

    def settle_before(self, number: int) -> None:
        while self._waiting and self._first < number:
            self.left_out = self._next()
            self.left_out.see()

    def take(self) -> Frame:
        """The frame of the first picture that waits."""
        number, picture = self._first, self._next()
        self.left_out = None
        picture.see()
        kept, self._kept = self._kept, None
        return kept[1] if kept and kept[0] == number else picture.frame()

    def keep(self, frame: Frame) -> None:
        """Keep the frame of the newest picture, in case it is taken."""
        self._kept = self.newest, frame

    def _next(self) -> TimedPicture:
        self._first += 1
        return self._waiting.popleft()


def _size(frame: Frame) -> int:
    cells = frame.motion.cells.size if frame.motion and frame.motion.cells is not None else 0
    height, width = frame.image.shape[:2]
    return slot_bytes(height, width, cells)


def _ahead(source: ContainerSource) -> int:
    """How many pictures may wait."""
    size = max(1, source.video.width * source.video.height * 3 // 2)
    return max(2, min(MAX_AHEAD, AHEAD_BYTES // size))


def predictor(rate: float | None) -> Predict:
    """Whether a picture will be taken when frames are sampled at that rate, None = all."""
    sampler = Sampler(rate)

    def accepts(time: Fraction) -> bool:
        if sampler.stays(time):
            sampler.take_left_out()
        return sampler.accepts(time)

    return accepts
