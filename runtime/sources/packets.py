"""Pictures out of encoded packets that somebody else brings, who has a network stack or a demuxer
of their own."""

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

# of a packet: more than the largest picture that is let in has as H.264 or HEVC
MAX_PACKET_BYTES = 64 << 20
MAX_EXTRADATA_BYTES = 1 << 20  # bytes
SOFTWARE = {"av1": "libdav1d"}  # FFmpeg's decoder of that name is only for hardware
MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class DecodedPicture:
    """One picture; what it gives is good until the next is taken."""

    time_us: int
    image: Callable[[], np.ndarray]  # [height, width, 3] uint8 RGB, upright
    motion: Callable[[], Motion | None]  # since this was asked before


class PacketReader:
    """A decoder without a container. On one thread, as a container's."""

    def __init__(
        self,
        codec: str,
        extradata: bytes = b"",
        *,
        motion: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """codec: FFmpeg's name of it, as h264. extradata: what its container holds for the decoder;
        empty where the packets carry it. motion: whether pictures are to tell it. Raises
        SourceError if there is no such decoder, or it does not take the extradata.
        """
        limits = limits or Limits()
        context = self._context = _context(codec)
        if len(extradata) > MAX_EXTRADATA_BYTES:
            raise SourceError(
                f"{len(extradata)} bytes of extradata for {codec}, more than {MAX_EXTRADATA_BYTES}: "
                "give what its container holds"
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
        """The pictures that one packet completes, in the order they are shown: none, one or more.
        data: a whole picture, in the order of decoding. time_us: when it is shown. Raises
        SourceError for a packet that cannot be decoded; the next one may.
        """
        if not 0 < len(data) <= MAX_PACKET_BYTES:
            raise SourceError(
                f"a packet of {len(data)} bytes: give 1 to {MAX_PACKET_BYTES}, a whole picture"
            )
        # of FFmpeg's own making, with the zeros behind it that decoders read on into
        packet = av.Packet(len(data))
        packet.update(data)
        packet.pts, packet.time_base = time_us, MICROSECOND
        return self._pictures(packet)

    def rest(self) -> Iterator[DecodedPicture]:
        """The pictures that are held back, after the last packet."""
        return self._pictures(None)

    def _pictures(self, packet: av.Packet | None) -> Iterator[DecodedPicture]:
        try:
            pictures = self._decoder.decode(packet)
        except Damaged as error:
            raise SourceError(
                f"the packet cannot be decoded ({error}): go on with the next"
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
            f"no decoder of {shown(codec)}: give FFmpeg's name, as h264, hevc, av1, vp9 or mjpeg"
        ) from error
    if not isinstance(context, av.VideoCodecContext):
        raise SourceError(
            f"{shown(codec)} is no video codec: give one as h264, hevc, av1, vp9 or mjpeg"
        )
    return context
