"""Decodes packets from callers that have their own network stack or demuxer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import numpy as np

from vicort.runtime.core import Motion
from vicort.runtime.errors import SourceError
from vicort.runtime.safe_text import shown
from vicort.runtime.sources.container import CpuDecoder, Damaged, reason
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.motion import EXPORT_VECTORS, MotionReader, exports_vectors

MAX_PACKET_BYTES = 64 << 20  # enough for the largest allowed picture as H.264 or HEVC
MAX_EXTRADATA_BYTES = 1 << 20
SOFTWARE = {"av1": "libdav1d"}  # FFmpeg's decoder named av1 needs hardware
MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class DecodedPicture:
    """One picture. `image` may be called at any time, `motion` until the next picture is taken."""

    time_us: int
    image: Callable[[], np.ndarray]  # [height, width, 3] uint8 RGB, upright
    motion: Callable[[], Motion | None]  # since the previous call


class PacketReader:
    """A decoder without a container, on one thread."""

    def __init__(
        self,
        codec: str,
        extradata: bytes = b"",
        *,
        motion: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """codec: FFmpeg's name, such as h264. extradata: the codec data of the container; empty if
        the packets carry it. motion: whether pictures report motion. Raises SourceError if there is
        no such decoder, or if it rejects the extradata.
        """
        limits = limits or Limits()
        context = self._context = _context(codec)
        if len(extradata) > MAX_EXTRADATA_BYTES:
            raise SourceError(
                f"{len(extradata)} bytes of extradata for {codec}, more than "
                f"{MAX_EXTRADATA_BYTES}: give the codec data of its container"
            )
        if extradata:
            context.extradata = extradata
        context.thread_count = 1
        motion = motion and not context.codec.intra_only
        context.options = limits.decoder_options | (EXPORT_VECTORS if motion else {})
        try:
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{codec} cannot be decoded ({reason(error)}): give its extradata, and see "
                "`ffmpeg -decoders`"
            ) from error
        self._decoder = CpuDecoder(context, limits)
        self._motion = (
            MotionReader(exports_vectors(context.codec.canonical_name)) if motion else None
        )

    def read(self, data: bytes, time_us: int) -> Iterator[DecodedPicture]:
        """The pictures that this packet completes, in display order: none, one or more.

        data: one encoded picture, in decoding order. time_us: its display time. Raises SourceError
        for a packet that cannot be decoded; the next packet may be decodable.
        """
        if not 0 < len(data) <= MAX_PACKET_BYTES:
            raise SourceError(
                f"a packet of {len(data)} bytes: give one picture, 1 to {MAX_PACKET_BYTES} bytes"
            )
        # allocated by FFmpeg, with the zero padding that decoders read
        packet = av.Packet(len(data))
        packet.update(data)
        packet.pts, packet.time_base = time_us, MICROSECOND
        return self._pictures(packet)

    def rest(self) -> Iterator[DecodedPicture]:
        """The pictures that the decoder still holds after the last packet."""
        return self._pictures(None)

    def _pictures(self, packet: av.Packet | None) -> Iterator[DecodedPicture]:
        try:
            pictures = self._decoder.decode(packet)
        except Damaged as error:
            raise SourceError(
                f"the packet cannot be decoded ({error}): continue with the next one"
            ) from error
        for picture in pictures:
            if self._motion:
                self._motion.see(picture)
            if (ticks := picture.dts if picture.pts is None else picture.pts) is not None:
                take = self._motion.take if self._motion else lambda: None
                yield DecodedPicture(ticks, partial(self._decoder.convert, picture), take)


def _context(codec: str) -> av.VideoCodecContext:
    try:
        context = av.CodecContext.create(SOFTWARE.get(codec, codec), "r")
    except (av.FFmpegError, ValueError) as error:
        raise SourceError(
            f"no decoder for {shown(codec)}: give FFmpeg's name, such as h264, hevc, av1, vp9 or "
            "mjpeg"
        ) from error
    if not isinstance(context, av.VideoCodecContext):
        raise SourceError(
            f"{shown(codec)} is not a video codec: give one such as h264, hevc, av1, vp9 or mjpeg"
        )
    return context
