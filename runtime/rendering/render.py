"""Reads a source once more and writes its video with the notes of a run drawn on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from vicort.runtime.core import Frame
from vicort.runtime.errors import ConfigError, SourceError, TruncatedSource
from vicort.runtime.rendering.canvas import Canvas
from vicort.runtime.rendering.lettering import Typeface
from vicort.runtime.rendering.notes import Notes
from vicort.runtime.rendering.overlay import Overlay
from vicort.runtime.rendering.video_file import FORMATS, SOUND, VideoFile
from vicort.runtime.safe_text import printable
from vicort.runtime.sources import Source
from vicort.runtime.sources.container import reason
from vicort.runtime.sources.sound import Sound
from vicort.runtime.sources.source import Warn
from vicort.runtime.written_files import new_file

USUAL_STEP = Fraction(1, 25)  # seconds that the picture of a single frame stays
# seconds from one picture to the next while the last one is held
SHORTEST, LONGEST = Fraction(1, 30), Fraction(1, 2)
# seconds that the last picture may last as the container says; more is not believed
MOST_MORE = 60


@dataclass(frozen=True)
class Rendered:
    """What was written."""

    frames: int
    seconds: Fraction


def render(
    source: Source,
    sound: Sound | None,
    notes: Notes,
    face: Typeface,
    path: Path,
    *,
    threads: int,
    warn: Warn,
    progress: Callable[[int], None],
) -> Rendered:
    """Write the video of a source with the notes of a run, up to the last frame that the run saw.

    The last picture is held until the last notes can be read. progress: called with how many frames
    of the source were written. One frame at a time is in memory, besides those of the source and of
    the encoder. Raises ConfigError if the file cannot be written, and SourceError; a file that had
    its name before then stays.
    """
    format = FORMATS[path.suffix.lower()]
    if sound and sound.codec not in SOUND[format]:
        warn(
            f"the sound of {source.name} ({sound.codec}) is left out of {path}: players do not "
            f"take it in {path.suffix}; one that ends in .mkv may hold it"
        )
        sound.close()
        sound = None
    try:
        with closing(sound) if sound else nullcontext(), new_file(path, "--render") as file:
            source.expect(None)
            frames = source.frames()
            canvas, first = _begun(frames)
            overlay = Overlay(notes.in_order, canvas.height, canvas.width, face)
            with VideoFile(
                file,
                format,
                canvas.height,
                canvas.width,
                ticks=notes.ticks,
                threads=threads,
                sound=sound,
            ) as video:
                written = _Pass(canvas, overlay, video, progress)
                result = written.run(chain([first], frames), notes.last, source.duration)
                if video.damaged:
                    warn(
                        f"{video.damaged} packets of the sound of {source.name} are damaged, and "
                        f"left out of {path}"
                    )
                return result
    except av.FFmpegError as error:
        raise ConfigError(
            f"--render {printable(str(path))} cannot be written ({reason(error)}): see whether "
            "another suffix works, such as .mkv"
        ) from error


def _begun(frames: Iterator[Frame]) -> tuple[Canvas, Frame]:
    """The first frame and a canvas of its size. Raises SourceError."""
    for frame in frames:
        return Canvas(*frame.image.shape[:2]), frame
    raise SourceError("the source shows no picture any more: see whether it has changed")


class _Pass:
    """One pass over the frames of a source."""

    def __init__(
        self,
        canvas: Canvas,
        overlay: Overlay,
        video: VideoFile,
        progress: Callable[[int], None],
    ) -> None:
        self._canvas, self._overlay, self._video = canvas, overlay, video
        self._progress = progress
        self._picture: np.ndarray | None = None  # the last one, without notes
        self._time = Fraction(0)  # its time
        self._step = USUAL_STEP  # from the one before it
        self._frames = 0  # written

    def run(
        self, frames: Iterable[Frame], until: Fraction | None, duration: Fraction | None
    ) -> Rendered:
        """until: time of the last frame to write. duration: of the source, in seconds."""
        whole = False
        with suppress(TruncatedSource):  # the run has reported it
            for frame in frames:
                if until is not None and frame.time > until:
                    break
                self._show(frame)
                self._progress(frame.index + 1)
            else:
                whole = True
        end = self._time + self._step
        if whole and duration is not None and self._time < duration <= end + MOST_MORE:
            end = duration
        end = max(end, self._overlay.read_until)
        self._hold(end)
        self._video.end(end, None if whole else end)
        return Rendered(self._frames, end)

    def _show(self, frame: Frame) -> None:
        if self._picture is not None:
            self._step = frame.time - self._time
            if self._step > LONGEST:  # notes do not wait for the next picture
                for time in self._overlay.changes(self._time, frame.time):
                    self._write(time)
        self._picture, self._time = self._canvas.place(frame.image), frame.time
        self._write(frame.time)

    def _hold(self, end: Fraction) -> None:
        """Repeat the last picture until `end`, if that is later than usual."""
        step = min(max(self._step, SHORTEST), LONGEST)
        if end < self._time + max(self._step, step) + step / 2:
            return
        time = self._time + step
        while time < end:
            self._write(time)
            time += step

    def _write(self, time: Fraction) -> None:
        if self._picture is not None:
            self._video.write(self._overlay.drawn(self._picture, time), time)
            self._frames += 1
