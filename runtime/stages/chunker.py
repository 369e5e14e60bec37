"""Frames in, chunks out: whole temporal units, in order, each frame once, or twice if it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from vicort.runtime.core import UNIT_FRAMES, Chunk, Frame
from vicort.runtime.errors import ConfigError, SourceError
from vicort.runtime.frame_grid import Grid


class Chunker:
    """Collects frames into chunks of `chunk_frames`; a chunk may be cut short between any two
    units. All frames of a chunk have the same grid of visual tokens."""

    def __init__(
        self,
        chunk_frames: int,
        grid_of: Callable[[int, int], Grid],
        *,
        repeats: bool = False,
        encodes_once: bool = True,
    ) -> None:
        """grid_of: the grid of a frame of that height and width in pixels. repeats: whether each
        frame makes a unit of its own. encodes_once: whether units that were encoded for a fork are
        not encoded again."""
        if chunk_frames < UNIT_FRAMES or chunk_frames % UNIT_FRAMES:
            raise ConfigError(
                f"a chunk of {chunk_frames} frames: it must hold whole units of {UNIT_FRAMES} "
                "frames (try 16)"
            )
        self.chunk_frames = chunk_frames
        self._grid_of = grid_of
        self._times = UNIT_FRAMES if repeats else 1  # that each frame is in its chunk
        self._encodes_once = encodes_once
        self._grid: Grid | None = None  # of the pending frames
        self._frames: list[Frame] = []
        self._chunks = self._units = 0  # that were completed so far
        self._encoded = 0  # pending units that were whole when the chunk was last forked

    @property
    def pending(self) -> int:
        """Frames that wait for their chunk to fill."""
        return len(self._frames)

    def closes(self, frame: Frame) -> bool:
        """Whether `add` would return a chunk for this frame. Changes no state; raises what `add`
        raises."""
        if not self._frames:
            return False
        return (
            self._grid_for(frame) != self._grid or self.pending + self._times == self.chunk_frames
        )

    def add(self, frame: Frame) -> Chunk | None:
        """Returns the chunk that this frame completes, or that it closes because it has another
        grid, if any.

        Raises SourceError, with the frame's time, for an aspect ratio that the model does not take.
        """
        grid = self._grid_for(frame)
        closed = self.flush() if grid != self._grid else None
        self._grid = grid
        self._frames += [frame] * self._times
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
        self._frames = self._completed()
        full = len(self._frames) == self.chunk_frames
        return self._take(self.chunk_frames) if full else None

    @property
    def moment(self) -> tuple[int, int]:
        """Tells the states of the chunk that is being filled apart: `fork` gives the same frames
        at the same moment."""
        return self._chunks, self.pending

    def fork(self) -> Chunk | None:
        """The chunk that is being filled, as a question sees it: as `flush` would return it. None
        if no frame waits.

        The chunks of the stream stay as they are. The vision encoder has to encode what this
        returns: whole units of it are not encoded again.
        """
        if not self._frames:
            return None
        fork = replace(self._chunk(self._completed()), forked=True)
        self._encoded = self.pending // UNIT_FRAMES if self._encodes_once else 0
        return fork

    def flush(self) -> Chunk | None:
        """At the end of the stream, or of frames of one grid, returns what is left, if anything.

        Half a unit is completed by repeating its frame.
        """
        self._frames = self._completed()
        return self._take(len(self._frames))

    def _completed(self) -> list[Frame]:
        return self._frames + self._frames[-1:] * (-len(self._frames) % UNIT_FRAMES)

    def _grid_for(self, frame: Frame) -> Grid:
        try:
            return self._grid_of(*frame.shape)
        except SourceError as error:
            raise SourceError(f"at {float(frame.time):.3f} s, {error}", error.brief) from error

    def _take(self, count: int) -> Chunk | None:
        if not count:
            return None
        chunk = self._chunk(self._frames[:count])
        del self._frames[:count]
        self._chunks += 1
        self._units += chunk.units
        self._encoded = 0
        return chunk

    def _chunk(self, frames: Sequence[Frame]) -> Chunk:
        if self._grid is None:
            raise ValueError("no frame was added")
        repeated = sum(before is after for before, after in pairwise(frames))
        return Chunk(
            self._chunks, self._units, tuple(frames), self._grid, repeated, encoded=self._encoded
        )
