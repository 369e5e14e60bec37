"""The job that every contender does: one clip, one question at its end, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vicort.runtime.core import UNIT_FRAMES, Frame
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.sources import open_source
from vicort.runtime.sources.sampler import Sampler

QUESTION = "What happens in this video?"
SYSTEM = "vicostream"  # of every side that streams
ANSWER_TOKENS = 16  # greedy
BLOCK = 1 << 24  # bytes that are read at once


@dataclass(frozen=True)
class ClipJob:
    """Everything that decides the work, so that each contender does the same."""

    clip: Path
    fps: float  # frames a second that are taken
    size: tuple[int, int]  # pixels, height and width of a frame as the model takes it
    chunk_frames: int
    unit_tokens: int  # visual tokens of two frames
    threads: int

    @classmethod
    def of(cls, clip: Path, model: ModelSpec, threads: int) -> ClipJob:
        """The job as an engine set of this model does it."""
        with open_source(str(clip)) as source:
            first = next(iter(source.frames(lambda time: True)))
        grid = model.grid(*first.image.shape[:2])
        size = grid.pixels(model.token_pixels)
        return cls(clip, model.fps, size, model.chunk_frames, grid.tokens, threads)

    def frames(self) -> list[Frame]:
        """The frames that are taken, decoded, in the size of the source: whole units."""
        sampler = Sampler(self.fps)
        with open_source(str(self.clip)) as source:
            found = [frame for frame in source.frames(sampler.wants) if sampler.accepts(frame.time)]
        return found[: len(found) // UNIT_FRAMES * UNIT_FRAMES]

    def parts(self) -> tuple[list[Frame], list[Frame]]:
        """The frames of whole chunks, and those of the chunk that the last frame is in."""
        frames = self.frames()
        whole = (len(frames) - 1) // self.chunk_frames * self.chunk_frames
        return frames[:whole], frames[whole:]


@dataclass(frozen=True)
class RunTimes:
    """Seconds of each step of a run."""

    load: float
    # frames whose chunks are in memory before the last frame comes, and how long they took;
    # 0 where the clip is taken as a whole
    streamed_frames: int
    streaming: float
    first_token: float  # from the last frame
    answer: float  # from the last frame to the end of the answer
    later_tokens: int  # of the answer, after the first

    def report(self) -> dict[str, float]:
        """Times in the units of their names."""
        rate = {"frames_a_second": self.streamed_frames / self.streaming} if self.streaming else {}
        return {
            "load_s": self.load,
            **rate,
            "last_frame_to_first_token_s": self.first_token,
            "clip_to_first_token_s": self.streaming + self.first_token,
            "decode_ms": 1000 * (self.answer - self.first_token) / max(self.later_tokens, 1),
        }


def resized(frames: Sequence[Frame], size: tuple[int, int]) -> list[Frame]:
    """Frames of size (height, width), bicubic."""
    height, width = size
    return [
        Frame(
            np.asarray(
                Image.fromarray(frame.image).resize((width, height), Image.Resampling.BICUBIC)
            ),
            frame.time,
            frame.index,
        )
        for frame in frames
    ]


def read_files(folder: Path) -> None:
    """Reads all files of a folder, so that loading them then takes them from the page cache."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(BLOCK):
                    pass
