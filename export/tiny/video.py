"""Writes streams as video files, and reads video files as units of frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vicort.export.tiny.looks import Look
from vicort.export.tiny.model import SIDE
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.world import ThingStream
from vicort.runtime.core import UNIT_FRAMES


def write_video(
    path: str | Path,
    stream: ThingStream,
    size: tuple[int, int],
    fps: int = 25,
    codec: str = "libx264",
    bitrate: int | None = None,
    look: Look | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """Draw and encode a stream.

    path: its suffix selects the container. size: (width, height) in pixels, both even, in the
    stream's aspect. fps: frames per second. codec: an FFmpeg encoder, such as libx264, mpeg4,
    libvpx-vp9 or mjpeg. bitrate: bits per second, None = the encoder's default. options: other
    encoder options, such as {"crf": "28"}.
    """
    painter = Painter(stream, *size, look=look)
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=fps, options=options or {})
        track.width, track.height = size
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if bitrate is not None:
            track.bit_rate = bitrate
        for index in range(max(1, round(stream.duration * fps))):
            frame = av.VideoFrame.from_ndarray(painter.frame(index / fps), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())


def read_frames(
    path: str | Path, fps: float = 2.0, phase: float = 0.0
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """(time in seconds, [height, width, 3] uint8 RGB) of the first frame at or after phase, phase +
    1/fps, …"""
    due = Fraction(phase).limit_denominator(1000)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            time = frame.pts * frame.time_base
            if time >= due:
                yield time, frame.to_ndarray(format="rgb24")
                due += Fraction(1) / Fraction(fps).limit_denominator(1000)


def letterbox(image: np.ndarray, shift: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """[height, width, 3] uint8 -> [112, 112, 3] uint8: bicubic with antialias, black bars.

    shift: position of the picture between the bars, (0.5, 0.5) = centred.
    """
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = round((SIDE - new_width) * shift[0]), round((SIDE - new_height) * shift[1])
    boxed = np.zeros((SIDE, SIDE, 3), np.uint8)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    boxed[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return boxed


def read_units(
    path: str | Path, fps: float = 2.0, phase: float = 0.0, shift: tuple[float, float] = (0.5, 0.5)
) -> tuple[np.ndarray, list[Fraction]]:
    """A whole file as units.

    Returns frames [U, 2, 112, 112, 3] uint8 and the times of the 2 U frames in seconds. The last
    frame is repeated to complete its unit.
    """
    times, frames = [], []
    for time, image in read_frames(path, fps, phase):
        times.append(time)
        frames.append(letterbox(image, shift))
    if len(frames) % UNIT_FRAMES:
        times.append(times[-1])
        frames.append(frames[-1])
    return np.stack(frames).reshape(-1, UNIT_FRAMES, SIDE, SIDE, 3), times
