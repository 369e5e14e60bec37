"""Clips of the frames before and after an alert fired."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vicort.runtime.alerts.evidence_folder import EvidenceFolder
from vicort.runtime.alerts.evidence_ring import KeptFrame
from vicort.runtime.rendering.video_file import VideoFile
from vicort.runtime.safe_text import brief
from vicort.runtime.written_files import new_file

TICKS = 90_000  # a second, of times in a clip
LAST = Fraction(1, 2)  # seconds that the last frame stays
MAX_CLIPS = 16  # that are recorded or written at a time
CLIP_BYTES = 128_000_000  # of frames of one clip, as JPEG: it ends there
WAITING_BYTES = 64_000_000  # of frames that wait to be compressed


@dataclass(eq=False)
class _Clip:
    path: Path
    until: Fraction  # seconds of the stream
    frames: list[KeptFrame]
    bytes: int = 0  # of its frames that are compressed
    is_full: bool = False


class ClipRecorder:
    """Collects the frames of each clip. A thread of its own compresses and writes them.
    Thread-safe."""

    def __init__(self, folder: EvidenceFolder, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn
        self._open: list[_Clip] = []
        self._unwritten = 0  # clips, with those that are open
        self._waiting = 0  # bytes of frames that wait to be compressed
        self._closed = False
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "clips")

    def start(self, path: Path, frames: list[KeptFrame], until: Fraction) -> bool:
        """Begin a clip with these frames, which ends at `until`, in seconds of the stream. Returns
        False if too many are not written yet, or it is closed."""
        with self._lock:
            if self._closed or self._unwritten >= MAX_CLIPS:
                return False
            self._unwritten += 1
            clip = _Clip(path, until, frames)
            self._open.append(clip)
            for frame in frames:
                self._compress(frame, [clip])
            return True

    def add(self, frame: KeptFrame) -> None:
        """The next frame of the stream."""
        with self._lock:
            ready = [each for each in self._open if each.is_full or frame.at > each.until]
            self._open = [each for each in self._open if each not in ready]
            takes = [each for each in self._open if frame.at > each.frames[-1].at]
            for clip in takes:
                clip.frames.append(frame)
            if takes:
                self._compress(frame, takes)
            for clip in ready:
                self._writer.submit(self._write, clip)

    def close(self) -> None:
        """Write what has been collected, and wait until it is written."""
        with self._lock:
            ready, self._open, self._closed = self._open, [], True
            for clip in ready:
                self._writer.submit(self._write, clip)
        self._writer.shutdown()

    def _compress(self, frame: KeptFrame, clips: list[_Clip]) -> None:
        """On the writer's thread, or on this one if too many frames wait for that."""
        size = frame.raw_bytes
        if self._waiting + size > WAITING_BYTES:
            frame.compress()
            size = 0
        self._waiting += size
        self._writer.submit(self._compressed, frame, size, clips)

    def _compressed(self, frame: KeptFrame, size: int, clips: list[_Clip]) -> None:
        try:
            frame.compress()
        finally:
            with self._lock:
                self._waiting -= size
                for clip in clips:
                    clip.bytes += frame.jpeg_bytes
                    clip.is_full = clip.bytes >= CLIP_BYTES

    def _write(self, clip: _Clip) -> None:
        try:
            write_clip(clip.path, clip.frames)
            self._folder.tidy()
        except Exception as error:  # noqa: BLE001 - of a codec: the stream goes on
            self._warn(f"the clip {clip.path} is missing: {brief(error)}")
        finally:
            with self._lock:
                self._unwritten -= 1
        if clip.is_full:
            self._warn(f"the clip {clip.path} ends early: it has more than {CLIP_BYTES} bytes")


def write_clip(path: Path, frames: list[KeptFrame]) -> None:
    """An MP4 file of these frames at their own times, with an even number of rows and columns; one
    of another size than the first is left out. Raises ConfigError."""
    height, width = (side // 2 * 2 for side in frames[0].image.shape[:2])
    start = frames[0].at
    with (
        new_file(path, "clip", private=True) as file,
        VideoFile(file, "mp4", height, width, ticks=TICKS, threads=1, sound=None) as video,
    ):
        for frame in frames:
            image = frame.image
            if image.shape[0] // 2 * 2 == height and image.shape[1] // 2 * 2 == width:
                video.write(image[:height, :width], frame.at - start)
        video.end(frames[-1].at - start + LAST, None)
