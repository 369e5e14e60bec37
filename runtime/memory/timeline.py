"""M-RoPE positions (t, h, w) of tokens, from exact timestamps, whatever was dropped.

Qwen2.5-VL (arXiv 2502.13923): the temporal position follows absolute time. Vision starts after the
prompt; text after vision starts one past the largest position before it, the rule that the weights
were trained with.
"""

from __future__ import annotations

import math
from copy import copy
from fractions import Fraction

import numpy as np

from vicort.runtime.frame_grid import Grid
from vicort.runtime.manifest import ModelSpec


class Timeline:
    """Positions of the tokens to come in one stream.

    They stay below `model.max_position`: `Memory.keep_in_range` re-bases time before it leaves the
    trained range. Cached positions move by the same calls of `Memory`.
    """

    def __init__(self, model: ModelSpec, prompt_tokens: int, text_tokens: int) -> None:
        """text_tokens: positions kept free after the newest unit, for a question and its answer."""
        self.text_tokens = text_tokens
        self.first = prompt_tokens  # position of the first visual token, in t, h and w
        self.offset = 0  # temporal steps subtracted so far by re-basing
        self._rate = Fraction(model.tokens_per_second)
        self._last = model.max_position - text_tokens - 1  # largest t a unit may have
        self._origin: Fraction | None = None  # seconds, start of the first unit
        self._newest = self.first - 1  # largest position used so far
        # Position of the last token of appended text: units that follow come after it.
        self._text_end = self.first - 1
        self._spatial_end = self.first - 1  # largest h or w used so far

    def begin(self, start: Fraction) -> None:
        """The next unit starts at `start` seconds.

        Time counts from the start of the first unit, and continues after appended text.
        """
        if self._origin is None:
            self._origin = start
        if self._text_end >= self.first:
            self.offset -= max(self._text_end + 1 - self.step(start), 0)
            self._text_end = self.first - 1

    def append_text(self, end: int) -> None:
        """Text whose last token has position `end` has become part of the stream."""
        self._text_end, self._newest = end, max(self._newest, end)

    def step(self, start: Fraction) -> int:
        """Temporal position of a unit that starts at `start` seconds, before it is known to fit."""
        since_origin = Fraction(0) if self._origin is None else start - self._origin
        return self.first + math.floor(since_origin * self._rate) - self.offset

    def excess(self, start: Fraction) -> int:
        """Steps by which a unit starting then would leave the trained range; 0 = it fits."""
        return max(0, self.step(start) - self._last)

    def rebase(self, steps: int) -> None:
        """Subtract `steps` from the time of everything to come. Called by `Memory` alone."""
        self.offset += steps
        self._newest = max(self._newest - steps, self._spatial_end)
        self._text_end -= steps

    def stay_behind(self, end: int) -> None:
        """The newest appended text, whose last token is at `end` now, went back less far than time
        did: what follows comes after it."""
        if self._text_end >= self.first:
            self._text_end = max(self._text_end, end)
        self._newest = max(self._newest, end)

    @property
    def range(self) -> int:
        """Temporal steps between the first and the last allowed position."""
        return self._last - self.first

    def unit(self, start: Fraction, grid: Grid) -> np.ndarray:
        """[P, 3] int32 positions of all tokens of a unit, row-major over the grid."""
        self.begin(start)
        # A unit may be older than a jump past the whole range, for which time was re-based.
        step = max(self.step(start), self.first)
        end = self.first + max(grid.rows, grid.columns) - 1
        self._spatial_end = max(self._spatial_end, end)
        self._newest = max(self._newest, step, end)
        places = np.indices((grid.rows, grid.columns), np.int32).reshape(2, -1).T + self.first
        return np.column_stack([np.full(grid.tokens, step, np.int32), places]).astype(np.int32)

    def fork(self, newest: Fraction) -> Timeline:
        """The positions of units that do not become part of the stream, of which the last one
        starts at `newest` seconds. This timeline does not change.

        Where they would leave the trained range, the last unit gets the last position in it.
        """
        fork = copy(self)
        fork.rebase(fork.excess(newest))
        return fork

    @property
    def next_text(self) -> int:
        """Position of the first text token after everything seen so far: max(t, h, w) + 1."""
        return self._newest + 1


def text_positions(first: int, count: int) -> np.ndarray:
    """[count, 3] int32 positions of a run of text, t = h = w."""
    return np.repeat(np.arange(first, first + count, dtype=np.int32)[:, None], 3, axis=1)
