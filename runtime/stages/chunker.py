"""Frames in, chunks out: whole temporal units, in order, each frame once, or twice if it stays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from vicort.runtime.core import UNIT_FRAMES, Chunk, Frame
from vicort.runtime.errors import ConfigError, SourceError
from vicort.runtime.frame_grid import Grid


class Chunker:
    """Collects frames into chunks of `chunk_frames`; a chunk may be cut short between any two
    units. All frames of a chunk have the same grid of visual tokens."""

    def __init__(self, chunk_frames: int, grid_of: Callable[[int, int], Grid]) -> None:
        """grid_of: the grid of a frame of that height and width in pixels."""
        if chunk_frames < UNIT_FRAMES or chunk_frames % UNIT_FRAMES:
            raise ConfigError(
                f"a chunk of {chunk_frames} frames: it must hold whole units of {UNIT_FRAMES} "
                "frames (try 16)"
            )
        self.chunk_frames = chunk_frames
        self._grid_of = grid_of
        self._grid: Grid | None = None  # of the pending frames
        self._frames: list[Frame] = []
        self._chunks = self._units = 0  # that were completed so far

    @property
    def pending(self) -> int:
        """Frames that wait for their chunk to fill."""
        return len(self._frames)

    def closes(self, frame: Frame) -> bool:
        """Whether `add` would return a chunk for this frame. Changes no state; raises what `add`
        raises."""
        if not self._frames:
            return False
        return self._grid_for(frame) != self._grid or self.pending == self.chunk_frames - 1

    def add(self, frame: Frame) -> Chunk | None:
        """Returns the chunk that this frame completes, or that it closes because it has another
        grid, if any.

        Raises SourceError, with the frame's time, for an aspect ratio that the model does not take.
        """
        grid = self._grid_for(frame)
        closed = self.flush() if grid != self._grid else None
        self._grid = grid
        self._frames.append(frame)
        full = len(self._frames) == self.chunk_frames
        return closed or (self._take(self.chunk_frames) if full else None)

    def cut(self) -> Chunk | None:
        """Returns a short chunk of the units that are complete now, if any; half a unit stays
        pending."""
        return self._take(len(self._frames) // UNIT_FRAMES * UNIT_FRAMES)

    def hold(self) -> Chunk | None:
        """The newest frame stays where another one was due: half a unit is completed by repeating
        it, and nothing else is repeated, however long it stays.

        Returns the chunk that this completes, if any.
        """
        self._complete()
        full = len(self._frames) == self.chunk_frames
        return self._take(self.chunk_frames) if full else None

    def fork(self) -> Chunk | None:
        """Half a unit as a question sees it, completed by repeating its frame; None if there is
        none. Call after `cut`. Changes no state."""
        if not self._frames or self._grid is None:
            return None
        frames = (self._frames[0],) * UNIT_FRAMES
        return Chunk(self._chunks, self._units, frames, self._grid, UNIT_FRAMES - 1, forked=True)

    def flush(self) -> Chunk | None:
        """At the end of the stream, or of frames of one grid, returns what is left, if anything.

        Half a unit is completed by repeating its frame.
        """
        self._complete()
        return self._take(len(self._frames))

    def _complete(self) -> None:
        self._frames += self._frames[-1:] * (-len(self._frames) % UNIT_FRAMES)

    def _grid_for(self, frame: Frame) -> Grid:
        try:
            return self._grid_of(*frame.shape)
        except SourceError as error:
            raise SourceError(f"at {float(frame.time):.3f} s, {error}", error.brief) from error

    def _take(self, count: int) -> Chunk | None:
        if not count or self._grid is None:
            return None
        frames = tuple(self._frames[:count])
        repeated = sum(before is after for before, after in pairwise(frames))
        chunk = Chunk(self._chunks, self._units, frames, self._grid, repeated)
        del self._frames[:count]
        self._chunks += 1
        self._units += chunk.units
        return chunk
