"""A clip as a model gets it: frames of the engine set's size, and the rows of a prompt, the clip
and a question with their positions. It is read by the runtime's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vicort.runtime.core import UNIT_FRAMES, Chunk
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.errors import ConfigError, SourceError, TruncatedSource
from vicort.runtime.frame_grid import Grid
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.timeline import Timeline, text_positions
from vicort.runtime.sources.opening import open_source
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.sources.source import Source
from vicort.runtime.stages.chunker import Chunker

MAX_TOKENS = 2048  # visual tokens that are read: time and memory of a pass grow with them
QUESTION = "what is there now?"


@dataclass(frozen=True)
class ClipUnit:
    """A temporal unit of a clip."""

    frames: np.ndarray  # [2,height,width,3] uint8 RGB, of the size of the grid
    grid: Grid
    positions: np.ndarray  # [P,3] int32 of its visual tokens


@dataclass(frozen=True)
class CalibrationClip:
    """The first units of a clip between a prompt and a question."""

    name: str
    units: tuple[ClipUnit, ...]
    prompt: np.ndarray  # [n] int32, tokens before the video
    question: np.ndarray  # [n] int32, tokens after it
    question_start: int  # position of its first token

    @property
    def tokens(self) -> int:
        """Visual tokens of all units; the language model gets up to MAX_TOKENS of them."""
        return sum(unit.grid.tokens for unit in self.units)

    @property
    def positions(self) -> np.ndarray:
        """[C,3] int32 of all rows that the language model gets."""
        visual = np.concatenate([unit.positions for unit in self.units])[:MAX_TOKENS]
        return np.concatenate(
            [
                text_positions(0, len(self.prompt)),
                visual,
                text_positions(self.question_start, len(self.question)),
            ]
        )

    @property
    def fingerprint(self) -> str:
        """Hash of frames, positions and text: of what was read, not of the file's name."""
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(repr(unit.frames.shape).encode() + unit.frames.tobytes())
        for array in (self.positions, self.prompt, self.question):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]


def read_clip(spec: str, model: ModelSpec, checkpoint: Path) -> CalibrationClip:
    """Read the first units of a clip, up to MAX_TOKENS visual tokens, at least one unit.

    spec: as `open_source` takes it. model: says the size of frames, their rate and the length of a
    chunk. checkpoint: its tokenizer and chat template. Raises SourceError for a clip that cannot be
    read, ConfigError for a source that another build could not read again.
    """
    prompt = Prompt(checkpoint, model.video_token)
    prefix, question = (
        np.array(tokens, np.int32) for tokens in (prompt.prefix, prompt.question(QUESTION))
    )
    timeline = Timeline(model, len(prefix), len(question))
    try:
        if spec == "-":
            raise _live(spec)
        with open_source(spec) as source:
            if source.live:
                raise _live(source.name)
            units = _units(source, model, timeline)
    except SourceError as error:
        raise SourceError(f"--calibration: {error}", error.brief) from error
    if not units:
        raise SourceError(f"--calibration: {spec} has no frame: name another clip")
    return CalibrationClip(source.name, units, prefix, question, timeline.next_text)


def _live(name: str) -> ConfigError:
    return ConfigError(
        f"--calibration {name} is a live source, and a build may be repeated: record a clip, and "
        "name its file"
    )


def _units(source: Source, model: ModelSpec, timeline: Timeline) -> tuple[ClipUnit, ...]:
    resize = Preprocessor(*(model.fixed_size or (None, None)))
    units: list[ClipUnit] = []
    for chunk in _chunks(source, model):
        grid, side = chunk.grid, model.token_pixels
        frames = np.empty((len(chunk.frames), *grid.pixels(side), 3), np.uint8)
        resize([frame.image for frame in chunk.frames], frames)
        for unit in range(chunk.units):
            first = UNIT_FRAMES * unit
            places = timeline.unit(chunk.frames[first].time, grid)
            units.append(ClipUnit(frames[first : first + UNIT_FRAMES], grid, places))
            if sum(each.grid.tokens for each in units) + grid.tokens > MAX_TOKENS:
                return tuple(units)
    return tuple(units)


def _chunks(source: Source, model: ModelSpec) -> Iterator[Chunk]:
    """A source that is cut off gives what it has."""
    sampler, chunker = Sampler(model.fps), Chunker(model.chunk_frames, model.grid)
    try:
        for frame in source.frames(sampler.wants):
            if not sampler.accepts(frame.time):
                continue
            if sampler.missed and (chunk := chunker.hold()):
                yield chunk
            if chunk := chunker.add(frame):
                yield chunk
    except TruncatedSource:
        pass
    if chunk := chunker.flush():
        yield chunk
