"""Small videos of every odd kind, made with PyAV.

Frame i of each shows its own number: a white block whose place encodes i, on a background of four
colours, so that a test can tell which frame it got, and which way up.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

# top left, top right, bottom left, bottom right
CORNERS = ((200, 40, 40), (40, 160, 60), (40, 60, 200), (200, 190, 60))
QUIET = {
    "libx264": {},
    "libx265": {"x265-params": "log-level=none"},
    "libsvtav1": {"svtav1-params": "preset=12"},
}
BITS = 8  # of a frame's number


def image(number: int, width: int = 160, height: int = 120) -> np.ndarray:
    """[height, width, 3] uint8: four coloured quarters; a row of blocks across the middle holds the
    number's bits, lowest left."""
    picture = np.empty((height, width, 3), np.uint8)
    middle, center = height // 2, width // 2
    for (rows, columns), color in zip(quarters(middle, center), CORNERS, strict=True):
        picture[rows, columns] = color
    for bit in range(BITS):
        picture[
            middle - height // 8 : middle + height // 8,
            bit * width // BITS : (bit + 1) * width // BITS,
        ] = 255 * (number >> bit & 1)
    return picture


def quarters(middle: int, center: int) -> list[tuple[slice, slice]]:
    return [
        (rows, columns)
        for rows in (slice(0, middle), slice(middle, None))
        for columns in (slice(0, center), slice(center, None))
    ]


def number(picture: np.ndarray) -> int:
    """The number that `image` wrote, read back from an upright picture of any size."""
    height, width = picture.shape[:2]
    row = picture[height // 2].mean(axis=-1)
    return sum(int(row[int((bit + 0.5) * width / BITS)] > 128) << bit for bit in range(BITS))


def corners(picture: np.ndarray) -> list[int]:
    """Which of CORNERS is nearest to the picture's top left, top right, bottom left and bottom
    right."""
    down, right = picture.shape[0] // 8, picture.shape[1] // 8
    spots = [picture[row, column] for row in (down, -down) for column in (right, -right)]
    return [int(np.abs(np.array(CORNERS) - spot).sum(axis=-1).argmin()) for spot in spots]


def needs_encoder(codec: str) -> None:
    """Skip the test where this build of PyAV cannot write that codec."""
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no encoder {codec}")


def write_video(
    target: Path | io.BytesIO,
    times: Sequence[Fraction] | int = 50,  # of each frame in seconds, or how many at 25 a second
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (160, 120),  # width, height
    container: str | None = None,
    options: dict[str, str] | None = None,  # of the container
    encoder: dict[str, str] | None = None,  # of the encoder
    noise: bool = False,  # so that every frame takes some bytes
    last: float = 0,  # seconds that the last frame lasts; 0 = as the encoder says
) -> None:
    """One video stream whose frame i shows the number i."""
    needs_encoder(codec)
    stamps = [Fraction(i, 25) for i in range(times)] if isinstance(times, int) else times
    file: Any = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=container, options=options or {}) as output:
        track = output.add_stream(codec, rate=25, options=QUIET.get(codec, {}) | (encoder or {}))
        track.width, track.height, track.pix_fmt, track.gop_size = *size, pixel_format, 12
        track.time_base = track.codec_context.time_base = Fraction(1, 90_000)
        rng = np.random.default_rng(0)
        for i, time in enumerate(stamps):
            picture = image(i, *size)
            picture = (
                picture ^ rng.integers(0, 32, picture.shape, dtype=np.uint8) if noise else picture
            )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
            output.mux(track.encode(frame))
        packets = track.encode()
        if last:
            max(packets, key=lambda packet: packet.pts).duration = round(last * 90_000)
        output.mux(packets)


def write_audio(path: Path, seconds: float = 1.0) -> None:
    with av.open(str(path), "w") as output:
        track = output.add_stream("aac", rate=16_000, layout="mono")
        for start in range(0, int(16_000 * seconds), 1024):
            tone = np.sin(np.arange(start, start + 1024) / 20, dtype=np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            output.mux(track.encode(frame))
        output.mux(track.encode())


def write_image(
    path: Path, picture: np.ndarray, codec: str = "png", pixel_format: str = "rgb24"
) -> None:
    needs_encoder(codec)
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        track = output.add_stream(codec, rate=1)
        track.height, track.width = picture.shape[:2]
        track.pix_fmt = pixel_format
        output.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(track.encode())


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and holds a few bytes that would unpack to a row or two."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(300_000)))
        + chunk(b"IEND", b"")
    )


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b, c, d) into an MP4's track header (ISO 14496-12, 8.3.2).

    The pixel (p, q) is shown at (a p + c q, b p + d q).
    """
    content = bytearray(path.read_bytes())
    # version 0: the matrix follows 40 bytes of other fields
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def cut(source: Path, target: Path, share: float) -> Path:
    """The first part of a file, by bytes."""
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def join(target: Path, parts: Iterable[Path]) -> Path:
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def write_talking_video(
    path: Path, seconds: int = 2, *, sound: str = "aac", start: int = 0
) -> None:
    """A video as `write_video` makes, with a tone beside it, in stereo. start: the first
    timestamp, in seconds."""
    needs_encoder(sound)
    with av.open(str(path), "w") as output:
        track = output.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = 160, 120, "yuv420p"
        voice = output.add_stream(sound, rate=48_000, layout="stereo")
        for i in range(25 * seconds):
            picture = av.VideoFrame.from_ndarray(image(i), format="rgb24")
            picture.pts, picture.time_base = 25 * start + i, Fraction(1, 25)
            output.mux(track.encode(picture))
        output.mux(track.encode())
        for sample in range(0, 48_000 * seconds, 960):
            wave = (np.sin(np.arange(sample, sample + 960) / 20) * 16_000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave.repeat(2)[None], format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, 48_000 * start + sample
            output.mux(voice.encode(frame))
        output.mux(voice.encode())
