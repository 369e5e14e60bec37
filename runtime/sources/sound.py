"""The sound of a file, copied packet by packet and never decoded.

Where a decoder process reads the file, it sends the packets through a pipe in NUT, FFmpeg's own
format. This process reads the headers and packets of that format alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.stream import Discard

from vicort.runtime.sources.container import ContainerSource, reason
from vicort.runtime.sources.interruptible import InterruptibleFile
from vicort.runtime.sources.source import Source

FORMAT = "nut"
LEAD = 10  # seconds: NUT has no times below 0, and the lead-in of a codec has
# seconds ahead and back: more is a jump of the timestamps
AHEAD, BACK = Fraction(10), Fraction(-1)
# no codec is opened to probe the packets
HEADERS_ALONE = {"codec_whitelist": "none", "analyzeduration": "0"}


@dataclass
class Sound:
    """One stream of encoded sound. Times count from the start of its source, as those of frames."""

    stream: av.AudioStream  # a template for `add_stream_from_template`
    packets: Iterator[av.Packet]  # with rising pts, in `packet.time_base`
    close: Callable[[], None]

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, such as aac."""
        name: str = self.stream.codec_context.codec.canonical_name
        return name


def sound_of(source: Source) -> Sound | None:
    """The sound that belongs to the video of a source, which is then not to be read as video; None
    if it has none."""
    if not isinstance(source, ContainerSource):
        return None
    stream = source.video.container.streams.best("audio", related=source.video)
    if stream is None or stream.codec_context is None:
        return None
    stream.discard, source.video.discard = Discard.default, Discard.all
    return Sound(stream, _copied(source, stream), source.close)


def _copied(source: ContainerSource, stream: av.AudioStream) -> Iterator[av.Packet]:
    """The packets, as far as their timestamps go on without a jump."""
    base = stream.time_base
    shift = round(source.start / base)
    last: int | None = None
    try:
        for packet in _demuxed(source, stream):
            stamp = packet.dts if packet.pts is None else packet.pts
            if not packet.size or stamp is None:
                continue
            if last is not None and not BACK <= (stamp - shift - last) * base <= AHEAD:
                source.warn(
                    f"{source.name}: the timestamps of its sound jump at {float(last * base):.3f} "
                    "s: the sound ends there"
                )
                return
            if last is not None and stamp - shift <= last:
                continue
            packet.pts = packet.dts = last = stamp - shift
            yield packet
    except (av.FFmpegError, OSError) as error:
        source.warn(f"{source.name}: its sound cannot be read on ({reason(error)})")


def _demuxed(source: ContainerSource, stream: av.AudioStream) -> Iterator[av.Packet]:
    while True:
        try:
            yield from source.video.container.demux(stream)
        except IndexError:  # a stream begins that the container did not have when it was opened
            continue
        return


def send_sound(
    source: Source, file: int, announce: Callable[[bool], None], rearm: Callable[[], None]
) -> None:
    """Write the sound of a source to a pipe, which is closed. announce: called first, with whether
    there is any. rearm: called before each packet."""
    sound = sound_of(source)
    announce(sound is not None)
    with os.fdopen(file, "wb") as pipe:
        if sound is None:
            return
        with suppress(BrokenPipeError), av.open(pipe, "w", format=FORMAT) as output:
            track = output.add_stream_from_template(sound.stream)
            for packet in sound.packets:
                rearm()
                _move(packet, LEAD)
                packet.stream = track
                output.mux(packet)


def received(pipe: BinaryIO, ended: Callable[[], None], close: Callable[[], None]) -> Sound:
    """The sound that `send_sound` writes. ended: called at its end. Raises av.FFmpegError if it is
    none."""
    file = InterruptibleFile(pipe)
    with file.interruptible():
        container = av.open(file, format=FORMAT, options=HEADERS_ALONE)
    stream = container.streams.audio[0]

    def packets() -> Iterator[av.Packet]:
        last: int | None = None
        demuxed = container.demux(stream)
        while True:
            with file.interruptible():
                packet = next(demuxed, None)
            if packet is None:
                break
            if not packet.size:
                continue
            _move(packet, -LEAD)
            if last is not None and not packet.duration:  # NUT has none
                packet.duration = packet.pts - last
            last = packet.pts
            yield packet
        ended()

    def close_all() -> None:
        close()
        container.close()
        pipe.close()

    return Sound(stream, packets(), close_all)


def _move(packet: Any, seconds: int) -> None:
    packet.pts += round(seconds / packet.time_base)
    packet.dts = packet.pts
