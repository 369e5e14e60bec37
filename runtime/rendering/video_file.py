"""Writes pictures as H.264 into a file that players and browsers take, with copied sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vicort.runtime.errors import ConfigError
from vicort.runtime.sources.interruptible import InterruptibleFile
from vicort.runtime.sources.sound import Sound

ENCODER = "libx264"
# frames in the order in which they are shown: their times need no list of edits
QUALITY = {"preset": "veryfast", "crf": "20", "bf": "0"}
BT709, LIMITED = 1, 1  # in the colour tables of H.273
USUAL_RATE = 25  # frames a second, for the encoder's sense of a file without any
MATROSKA = "matroska"
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": MATROSKA}  # by suffix
# codecs of sound that players expect in a format
MP4_SOUND = {"aac", "mp3", "opus", "flac", "alac", "ac3", "eac3"}
PCM = {"pcm_s16le", "pcm_s24le"}
SOUND = {
    "mp4": MP4_SOUND,
    "mov": (MP4_SOUND | PCM) - {"opus", "flac"},
    MATROSKA: MP4_SOUND | PCM | {"vorbis", "mp2", "dts", "truehd"},
}
COPY_BYTES = 1 << 20  # read at a time when the index is moved to the front


def check_encoder() -> None:
    """Raises ConfigError if this PyAV has no encoder for H.264."""
    if ENCODER not in av.codecs_available:
        raise ConfigError(
            f"--render needs the encoder {ENCODER}, which PyAV {av.__version__} lacks here: "
            "install the wheel that has it, `pip install --force-reinstall --only-binary :all: av`"
        )


class VideoFile:
    """One video and perhaps its sound. Leave the context without an exception to complete it."""

    def __init__(
        self,
        file: BinaryIO,
        format: str,
        height: int,
        width: int,
        *,
        ticks: int,
        threads: int,
        sound: Sound | None,
    ) -> None:
        """file: to be written. format: a value of FORMATS. height, width: even. ticks: in a second,
        of times. threads: of the encoder. sound: of a codec in SOUND[format]."""
        self._file = file
        self._target = InterruptibleFile(file)
        self._base = Fraction(1, ticks)
        self._output = av.open(
            self._target,
            "w",
            format=format,
            options={"movflags": "+faststart", "movie_timescale": str(ticks)}
            if format != MATROSKA
            else {},
            buffer_size=COPY_BYTES,
            io_open=self._reopened,
        )
        self._track: Any = self._output.add_stream(ENCODER, rate=USUAL_RATE, options=QUALITY)
        self._track.height, self._track.width, self._track.pix_fmt = height, width, "yuv420p"
        self._track.time_base = self._base
        context = self._track.codec_context
        context.time_base, context.thread_count = self._base, threads
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._sound = sound
        self._packets: Iterator[av.Packet] = sound.packets if sound else iter(())
        self._voice = self._output.add_stream_from_template(sound.stream) if sound else None
        # Matroska would move all that follows a time below 0, where the lead-in of a codec lies
        self._takes_lead_in = format != MATROSKA
        self._next: av.Packet | None = None  # of the sound, which is due later
        self.damaged = 0  # packets of the sound that were left out
        self._newest = -1  # ticks, of the last picture

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            with self._target.interruptible():
                self._output.close()
            return
        with suppress(OSError):  # where the disk is full
            self._file.close()  # so that PyAV completes nothing
        self._output.close()

    def write(self, picture: np.ndarray, time: Fraction) -> None:
        """picture: [height, width, 3] uint8 RGB. time: in seconds, after the last one."""
        self._newest = max(self._newest + 1, round(time / self._base))
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts, frame.time_base = self._newest, self._base
        with self._target.interruptible():
            self._mux(self._track.encode(frame))
            self._mux_sound(time)

    def end(self, time: Fraction, sound_until: Fraction | None) -> None:
        """The last picture stays until `time`, in seconds. sound_until: the sound ends then; None =
        at its own end."""
        packets = self._track.encode()
        if packets:
            packets[-1].duration = max(1, round(time / self._base) - self._newest)
        with self._target.interruptible():
            self._mux(packets)
            self._mux_sound(sound_until)

    def _mux_sound(self, until: Fraction | None) -> None:
        """Copy packets that begin before `until`, in seconds, None = all."""
        while packet := self._next or next(self._packets, None):
            self._next = packet
            if until is not None and packet.pts * packet.time_base >= until:
                return
            self._next = None
            if packet.pts >= 0 or self._takes_lead_in:
                packet.stream = self._voice
                self._mux([packet])

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        """Sound that is damaged is left out; it may be refused when another packet is given."""
        for packet in packets:
            try:
                self._output.mux(packet)
            except av.InvalidDataError:
                if self._voice is None:
                    raise
                self.damaged += 1

    def _reopened(self, name: str, flags: int, options: dict[str, str]) -> InterruptibleFile:
        """The file once more, to be read while its index is moved to the front."""
        self._file.flush()
        return self._target.joined_by(
            open(f"/proc/self/fd/{self._file.fileno()}", "rb", buffering=0)
        )
