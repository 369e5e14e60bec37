"""Frames from everything that FFmpeg opens: files, network streams, cameras and pipes."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import av
from av.codec.context import Flags
from av.stream import Discard, Disposition

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.redact import redact, redact_exception
from vicort.runtime.sources.clean_aperture import clean_aperture
from vicort.runtime.sources.clock import Clock
from vicort.runtime.sources.joined import joined_files
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.matroska_crop import matroska_crop
from vicort.runtime.sources.motion import EXPORT_VECTORS, MotionReader, exports_vectors
from vicort.runtime.sources.multipart import FORMAT as MULTIPART
from vicort.runtime.sources.multipart import without_false_damage
from vicort.runtime.sources.piped import MAX_BYTES_WITHOUT_PICTURE, ByteFile
from vicort.runtime.sources.pixel_shape import PixelShape
from vicort.runtime.sources.pixels import NO_CROP, Converter, Crop
from vicort.runtime.sources.playlist import discontinuities
from vicort.runtime.sources.source import Ending, Source, Wanted, Wants, Warn

logger = logging.getLogger(__name__)

USUAL_RATE = Fraction(25)  # frames per second, for a stream that declares none
# formats without timestamps: FFmpeg assumes 25 frames per second, if the codec says nothing
RAW = (
    "h264",
    "hevc",
    "vvc",
    "m4v",
    "mpegvideo",
    "vc1",
    "obu",
    "h261",
    "h263",
    "cavsvideo",
    "dirac",
)
UNTIMED = ("mpjpeg", "mjpeg", "jpeg_pipe", *RAW)
# formats in which the first picture's timestamp says nothing about the start of the sound
UNSTARTED = (*UNTIMED, "avi")
HLS = "hls"
JUMPING = ("mpegts", HLS)  # formats whose timestamps may jump
HALF = Fraction(1, 2)
FILE = "file:"  # FFmpeg's protocol of files
# FFmpeg's own decoders leave out the transparency of WebM
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
SEQUENCES = ("avis", "msf1", "hevc", "hevx")  # brands of images that move
TEXT = "tty"  # FFmpeg draws plain text as a video of letters
VARIANT_PIXELS = 1280 * 720  # of the variant of an HLS stream that is taken
# seconds that a complete stream may be shorter than declared: containers round, and the last frame
# has a duration
SLACK = Fraction(1)


class Damaged(Exception):
    """A packet that cannot be decoded."""


class Decoder(Protocol):
    """Packets -> pictures -> frames."""

    keeps: bool  # whether a picture stays valid after the next ones are taken

    def decode(self, packet: av.Packet | None) -> Iterable[Any]:
        """The next pictures in display order, each with pts, dts, time_base and is_corrupt as in
        PyAV.

        None, or a packet without data, flushes the decoder. Raises Damaged.
        """
        ...

    def convert(self, picture: Any) -> Any:
        """Convert a picture to the image of a `Frame`."""
        ...


@dataclass(frozen=True)
class TimedPicture:
    """A decoded picture that may become a frame."""

    picture: Any
    time: Fraction
    index: int
    decoder: Decoder
    motion: MotionReader | None

    def see(self) -> None:
        """Count its motion into that of the next frame."""
        if self.motion:
            self.motion.see(self.picture)

    def frame(self) -> Frame:
        motion = self.motion.take() if self.motion else None
        return Frame(self.decoder.convert(self.picture), self.time, self.index, motion)


class CpuDecoder:
    """FFmpeg's decoder, of a stream or without one."""

    keeps = True

    def __init__(
        self,
        stream: av.VideoStream | av.VideoCodecContext,
        limits: Limits,
        crop: Crop = NO_CROP,
    ) -> None:
        """crop: what the container cuts off."""
        self._stream = _with_alpha(stream, limits)
        self._limits = limits
        # otherwise FFmpeg cuts off less at the left than the codec says
        _context_of(stream).flags |= Flags.unaligned
        self._pixel_shape = PixelShape(stream)
        self.convert = Converter(self._pixel_shape, crop=crop)

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            pictures = self._stream.decode(packet)
        except MemoryError as error:  # the next packet would have no more of it
            raise SourceError(reason(error)) from error
        except av.FFmpegError as error:
            raise Damaged(reason(error)) from error
        self._pixel_shape.see()  # pictures may be converted when others have been decoded
        for picture in pictures:
            if not self._limits.allows(picture.width, picture.height):
                raise Damaged(f"{picture.width}x{picture.height} is larger than declared")
        return pictures


def _context_of(stream: av.VideoStream | av.VideoCodecContext) -> av.VideoCodecContext:
    return stream.codec_context if isinstance(stream, av.VideoStream) else stream


def _with_alpha(
    stream: av.VideoStream | av.VideoCodecContext, limits: Limits
) -> av.VideoStream | av.VideoCodecContext:
    """The stream, or a decoder that also decodes how transparent it is."""
    name = ALPHA_DECODERS.get(_context_of(stream).name)
    if name is None or getattr(stream, "metadata", {}).get("alpha_mode") != "1":
        return stream
    context = av.CodecContext.create(name, "r")
    context.options = limits.decoder_options
    context.thread_count = _context_of(stream).thread_count
    return cast(av.VideoCodecContext, context)


class ContainerSource(Source):
    """One video stream of a container.

    Decodes on one thread by default: the engines need the others, and with several threads damaged
    data costs more frames.
    """

    def __init__(
        self,
        target: Any,  # for `av.open`: a URL, or a file object in binary mode
        name: str,
        *,
        stream: int | None = None,  # index in the container; None = the first video stream
        live: bool | None = None,  # None = live if it has no length
        warn: Warn | None = None,
        threads: int = 1,
        advice: str = "",  # for the error text if it cannot be read
        limits: Limits | None = None,  # None = the default ones
        # seconds: packets without a picture for this long end the stream
        picture_timeout: float | None = None,
        **options: Any,  # for `av.open`
    ) -> None:
        super().__init__(name, warn=warn)
        self._advice = advice or f"see what it is with `ffprobe {name}`"
        limits = limits or Limits()
        # also applied while FFmpeg probes the stream
        options["options"] = options.get("options", {}) | limits.decoder_options
        self._container = _opened(target, name, self._advice, options)
        try:
            self._stream = _choose(self._container, name, stream)
            rate = self._declared_rate()
            pictures = self._stream.width * self._stream.height  # 0 = none was found
            limits.check(name, self._stream.width, self._stream.height, rate if pictures else None)
        except SourceError:
            self._container.close()
            raise
        if self._container.format.name == HLS:  # of variants that are left out, nothing is fetched
            for each in self._container.streams:
                if each is not self._stream:
                    each.discard = Discard.all
        self._stream.codec_context.options = limits.decoder_options
        self._picture_timeout = picture_timeout
        self._file = target if isinstance(target, ByteFile) else None
        self._stream.codec_context.thread_count = threads
        declared = self._stream.duration and self._stream.duration * self._time_base
        self.duration = (
            declared
            or (self._container.duration and Fraction(self._container.duration, av.time_base))
            or None
        )
        self.live = self.duration is None if live is None else live
        self._rate = rate = rate or USUAL_RATE
        self.frames_total = (
            self._stream.frames or (self.duration and round(self.duration * rate)) or None
        )
        logger.info(
            "%s: stream %d, %s of %s frames a second, %s, decoding threads: %d",
            name,
            self._stream.index,
            _size(self._stream),
            float(rate),
            self._stream.codec_context.name,
            threads,
        )
        self._path = _path(target)
        kind = self._container.format.name
        by_wall_clock = self.live and isinstance(target, str) and self._path is None
        self._clock = Clock(
            1 / rate,
            self.warn,
            may_jump=kind in JUMPING and not by_wall_clock,
            breaks=discontinuities(self._path) if self._path and kind == HLS else (),
        )
        # what the container cuts off, of local files
        self._crop = NO_CROP
        if self._path and self._is_mp4:
            self._crop = clean_aperture(self._path, self._stream.id)
        elif self._path and "matroska" in kind:
            self._crop = matroska_crop(
                self._path, self._container.streams.video.index(self._stream)
            )
        self._decoder: Decoder = CpuDecoder(self._stream, limits, self._crop)
        self._motion: MotionReader | None = None
        self._health = _Health()
        self._damage_reported = False
        self._reader: int | None = None  # the thread that frames are read on

    @property
    def untimed(self) -> bool:
        """Whether its timestamps only count frames."""
        return self._container.format.name in UNTIMED

    @property
    def stopped(self) -> str | None:
        """Why reading ended before the end of the stream; None if it did not."""
        return self._health.stopped

    @property
    def video(self) -> av.VideoStream:
        """The video stream that is decoded."""
        return self._stream

    @property
    def start(self) -> Fraction:
        """The timestamp, in seconds, that becomes time 0; before the first frame, as the container
        says."""
        first = (self._stream.start_time or 0) * self._time_base
        start = self._start(first)
        return first if start is None else min(first, start)

    def decode_with(self, decoder: Decoder) -> None:
        """Replace FFmpeg's decoder. Call before the first frame. Frames then carry no motion."""
        self._decoder = decoder
        self._motion = None

    def report_motion(self) -> None:
        """Let frames carry the motion that the codec reports. Call before the first frame."""
        context = self._stream.codec_context
        name = context.codec.canonical_name
        if not exports_vectors(name):
            self.warn(
                f"{self.name}: motion vectors of {name} are not available, so frames are compared "
                "instead"
            )
        if not context.codec.intra_only:
            context.options = context.options | EXPORT_VECTORS
            self._motion = MotionReader(exports_vectors(name), self._crop)

    @property
    def _is_mp4(self) -> bool:
        return "mov" in self._container.format.name

    @property
    def _time_base(self) -> Fraction:
        return self._stream.time_base or Fraction(1, av.time_base)

    def frames(self, wants: Wants | None = None) -> Iterator[Frame]:
        left_out: TimedPicture | None = None  # the picture before, if it was not wanted
        failure: SourceError | None = None
        pictures = self.pictures()
        while True:
            try:
                picture = next(pictures, None)
            except SourceError as error:
                picture, failure = None, error
            if picture is None:
                break
            wanted = wants is None or wants(picture.time)
            if wanted == Wanted.BOTH and left_out:
                yield left_out.frame()
            picture.see()
            left_out = None if wanted or not picture.decoder.keeps else picture
            if wanted:
                yield picture.frame()
        if left_out:
            self.ending = self.ending_with(left_out)
        if failure:
            raise failure

    def ending_with(self, last: TimedPicture) -> Ending:
        """How the stream ends with this picture, which was not wanted. Call after the last one."""
        ticks = getattr(last.picture, "duration", None) or 0
        end = last.time + ticks * Fraction(last.picture.time_base or self._time_base)
        declared = None if self._broken_off() else self._declared_end()
        return Ending(last.frame(), max(end, declared or end))

    def pictures(self) -> Iterator[TimedPicture]:
        """Every picture, decoded but not converted. `see` is to be called for each, in order.

        With a decoder that does not keep its pictures, one is valid until the next one.
        """
        self._reader = threading.get_ident()
        try:
            yield from self._timed_pictures()
        finally:
            self._reader = None

    def _timed_pictures(self) -> Iterator[TimedPicture]:
        for picture in self._pictures():
            time, index = self._time(picture), self._health.pictures
            self._health.see_picture(picture.is_corrupt)
            self._report_first_damage()
            if self._file:
                self._file.see_picture()
            yield TimedPicture(picture, time, index, self._decoder, self._motion)
        if self._health.pictures == 0:
            raise SourceError(
                f"{self.name} has a video stream, but no picture of it can be decoded: "
                f"{self._advice}"
            )
        if not self.live and (reason := self._broken_off()):
            raise TruncatedSource(
                f"{self.name} breaks off after {self._health.pictures} frames ({reason}): fetch or "
                "record it again"
            )
        self._report_repairs()

    @property
    def _damage(self) -> int:
        """Damaged packets. One that is flagged may also be one that is not decoded correctly; where
        timestamps jump, one is flagged though it is whole."""
        flagged = self._health.flagged - self._clock.repairs["jumping"]
        return max(self._health.damaged, flagged)

    def _report_first_damage(self) -> None:
        """A live stream may not end for days, so its first damage is reported at once."""
        if self.live and self._damage and not self._damage_reported:
            self._damage_reported = True
            self.warn(
                f"{self.name}: damaged packets after picture {self._health.pictures}: they are "
                "counted, and the count is reported when the connection ends"
            )

    def _report_repairs(self) -> None:
        """Warn of what was damaged, repaired or not read, with counts."""
        if self._damage:
            self.warn(
                f"{self.name}: {self._damage} damaged packets: their pictures are "
                "missing or concealed"
            )
        for kind, count in self._clock.repairs.items():
            if count > 1:
                self.warn(f"{self.name}: timestamps of {count} frames were {kind}, and repaired")
        if self._path:
            files, read = joined_files(self._path, self._container.format.name)
            if files > read:
                self.warn(
                    f"{self.name} is {files} files joined end to end, and only the first "
                    f"{'is' if read == 1 else 'two are'} read: join them with `ffmpeg -f concat`, "
                    "or give each as a source"
                )

    def close(self) -> None:
        """Does nothing while another thread reads, because FFmpeg would read freed memory."""
        if self._reader in (None, threading.get_ident()):
            self._container.close()

    def _pictures(self) -> Iterator[Any]:
        """Every picture of the stream in display order. Damaged packets are skipped."""
        seen = time.monotonic()
        try:
            for packet in self._packets():
                if packet.size:
                    self._health.see_packet(packet)
                before = self._health.pictures
                yield from self._decoded(packet)
                seen = seen if self._health.pictures == before else time.monotonic()
                if self._picture_timeout and time.monotonic() - seen > self._picture_timeout:
                    self._health.stopped = (
                        f"no picture for {self._picture_timeout:g} s, though data comes"
                    )
                    return
        except (
            av.FFmpegError,
            OSError,
        ) as error:  # the container cannot be read on, but the decoder may hold pictures back
            self._health.stopped = reason(error)
            yield from self._decoded(None)

    def _packets(self) -> Iterator[av.Packet]:
        while True:
            try:
                packets = self._container.demux(self._stream)
                multipart = self._container.format.name == MULTIPART
                yield from map(without_false_damage, packets) if multipart else packets
            # PyAV raises it at the first packet of a stream that the container did not have when it
            # was opened. Such streams are left out.
            except IndexError:
                continue
            if self._file and self._file.spent:
                self._health.stopped = f"no picture in {MAX_BYTES_WITHOUT_PICTURE} bytes"
            return

    def _decoded(self, packet: av.Packet | None) -> Iterator[Any]:
        try:
            yield from self._decoder.decode(packet)
        except Damaged:
            self._health.see_damage()

    def _time(self, picture: Any) -> Fraction:
        """Seconds since the start of the container, as players and ffprobe count."""
        stamp = self._stamp(picture)
        if self._health.pictures:
            return self._clock.time(stamp, step=self._length(picture))
        return self._clock.time(stamp, self._start(stamp))

    def _start(self, first: Fraction | None) -> Fraction | None:
        """The timestamp of the container's start, given the first picture's; None = the same."""
        start = self._container.start_time
        if start is None or first is None or self._container.format.name in UNSTARTED:
            return None
        # a codec's lead-in before 0 is not played
        return max(Fraction(start, av.time_base), min(Fraction(0), first))

    def _length(self, picture: Any) -> Fraction | None:
        """Seconds that a picture without a timestamp lasts, which may be more than one of two
        fields."""
        ticks = getattr(picture, "duration", None)
        length = ticks * Fraction(picture.time_base or self._time_base) if ticks else None
        return length if length and HALF <= length * self._rate <= 2 else None

    def _stamp(self, picture: Any) -> Fraction | None:
        ticks = picture.dts if picture.pts is None else picture.pts
        return None if ticks is None else ticks * Fraction(picture.time_base or self._time_base)

    def _broken_off(self) -> str | None:
        """Why the stream seems to be truncated; None if it seems complete."""
        health = self._health
        if health.stopped:
            return health.stopped
        if health.end_damaged:
            return "its last picture is damaged"
        # other containers index only key frames
        indexed = len(self._stream.index_entries) if self._is_mp4 else 0
        if health.packets < indexed:
            return f"its index lists {indexed}"
        declared, end = self._declared_end(), health.end * self._time_base
        if declared is not None and end + SLACK < declared:
            return f"at {float(end):.3f} s of {float(declared):.3f} s"
        return None

    def _declared_rate(self) -> Fraction | None:
        """Frames per second.

        Of a raw stream the average is FFmpeg's assumption, and the guess is what the codec says.
        Otherwise FFmpeg reports an average of 60,000 for raw DV, but guesses its rate correctly, so
        the lower of the two is used.
        """
        average, guessed = self._stream.average_rate, self._stream.guessed_rate
        rates = [guessed or average] if self._container.format.name in RAW else [average, guessed]
        return min((rate for rate in rates if rate), default=None)

    def _declared_end(self) -> Fraction | None:
        """The end of the stream in seconds, from containers whose header declares it. Others only
        estimate it from the data."""
        stream, kind = self._stream, self._container.format.name
        if kind == "avi" and stream.frames and stream.average_rate:
            return stream.frames / stream.average_rate
        # Matroska, per stream
        if match := re.fullmatch(
            r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")
        ):
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
        alone = len(self._container.streams) == 1  # with several, another one may be longer
        return self.duration if alone and ("matroska" in kind or kind == "flv") else None


class _Health:
    """Counts what was read of a stream and what was damaged."""

    def __init__(self) -> None:
        self.packets = 0  # with data
        self.pictures = 0  # decoded
        self.damaged = 0  # packets that were not decoded correctly
        self.flagged = 0  # packets that the container says are damaged
        self.end = 0  # ticks: end time of the latest picture
        self.end_damaged = False  # the newest packet or picture is damaged
        self.stopped: str | None = None  # why reading ended early

    def see_packet(self, packet: av.Packet) -> None:
        self.packets += 1
        self.end_damaged = packet.is_corrupt
        self.flagged += packet.is_corrupt
        if packet.pts is not None:
            self.end = max(self.end, packet.pts + (packet.duration or 0))

    def see_picture(self, corrupt: bool) -> None:
        self.pictures += 1
        if corrupt:
            self.see_damage()

    def see_damage(self) -> None:
        self.damaged += 1
        self.end_damaged = True


def _opened(
    target: Any, name: str, advice: str, options: dict[str, Any]
) -> av.container.InputContainer:
    try:
        return av.open(target, metadata_errors="replace", **options)
    except (av.FFmpegError, OSError) as error:
        failure = error
    why = reason(failure)
    line = f"{name} cannot be opened as a video ({why}): {advice}"
    # FFmpeg's error contains the URL with its password, so it is not chained
    if name != target and "://" in str(target):
        raise SourceError(line, why)
    raise SourceError(line, why) from failure


def _path(target: Any) -> Path | None:
    """The file that a target names; None if it is no file on a disk."""
    if not isinstance(target, str) or not target.startswith(FILE):
        return None
    path = Path(target.removeprefix(FILE))
    return path if path.is_file() else None


def _variant(videos: Sequence[av.VideoStream]) -> av.VideoStream:
    """Of streams of one content: the largest that is no larger than needed, the first of equals."""
    known = [stream for stream in videos if stream.codec_context is not None]
    sizes = {stream.index: stream.width * stream.height for stream in known}
    fitting = [stream for stream in known if 0 < sizes[stream.index] <= VARIANT_PIXELS]
    if fitting:
        return max(fitting, key=lambda stream: sizes[stream.index])
    return min(known, key=lambda stream: sizes[stream.index], default=videos[0])


def _choose(container: av.container.InputContainer, name: str, index: int | None) -> av.VideoStream:
    """The stream with this index, or the first video stream that is not a cover picture.

    Of the variants of an HLS stream it is the largest of at most VARIANT_PIXELS, or the smallest.
    """
    videos = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not videos or container.format.name == TEXT:
        found = ", ".join(f"{stream.index} {stream.type}" for stream in container.streams) or "none"
        raise SourceError(
            f"{name} contains no video stream (streams: {found}): give a file with video"
        )
    chosen = (
        (_variant(videos) if container.format.name == HLS else _first(container, videos))
        if index is None
        else next((stream for stream in videos if stream.index == index), None)
    )
    allowed = ", ".join(f"{stream.index} ({_size(stream)})" for stream in videos)
    if chosen is None:
        raise SourceError(
            f"stream {index} of {name} is not a video: its video streams are {allowed} (try "
            f"`--stream {videos[0].index}`)"
        )
    if chosen.codec_context is None:
        raise SourceError(
            f"stream {chosen.index} of {name} has a codec that cannot be decoded: convert it to "
            f"H.264, or use another of {allowed}"
        )
    return chosen


def _first(container: av.container.InputContainer, videos: list[av.VideoStream]) -> av.VideoStream:
    """The first video stream; of an animated AVIF or HEIF, whose first one is a still picture, the
    first one that moves."""
    if container.metadata.get("major_brand") in SEQUENCES:
        return next((stream for stream in videos if stream.frames > 1), videos[0])
    return videos[0]


def _size(stream: av.VideoStream) -> str:
    return "unknown codec" if stream.codec_context is None else f"{stream.width}x{stream.height}"


def reason(error: BaseException) -> str:
    """The error text of FFmpeg or of the operating system, in one line. The error itself is
    redacted too: a traceback shows it."""
    redact_exception(error)
    if isinstance(error, av.error.ExitError):  # PyAV's error for a timeout
        return "nothing came in time"
    return redact(
        (str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__])[0]
    )
