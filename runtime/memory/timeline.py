"""Where each token stands: M-RoPE positions (t, h, w) from exact timestamps, whatever was dropped.

Qwen2.5-VL (arXiv 2502.13923): the temporal position follows absolute time. Vision starts behind the
prompt; text after vision starts one past the largest position before it, the rule that the weights
were trained with.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from vicort.runtime.manifest import ModelSpec


class Timeline:
    """Positions of one stream. They stay below `model.max_position`: when time would run out, it is
    re-based."""

    def __init__(self, model: ModelSpec, prompt_tokens: int, text_room: int) -> None:
        """text_room: positions kept free behind the newest unit, for a question and its answer."""
        self.first = prompt_tokens  # position of the first visual token, in t, h and w
        self.offset = 0  # temporal steps taken off so far by re-basing
        self._rate = Fraction(model.tokens_per_second)
        self._last = model.max_position - text_room - 1  # largest t a unit may have
        self._origin: Fraction | None = None  # seconds, start of the first unit
        self._newest = self.first - 1  # largest position used so far
        # position of the last token of text that joined the stream: units that follow come behind
        # it
        self._text_end = self.first - 1
        grid = np.mgrid[: model.grid_height, : model.grid_width].reshape(2, -1)
        self._grid = (grid.T + self.first).astype(np.int32)  # [P, 2]
        self._spatial_end = self.first + max(model.grid_height, model.grid_width) - 1

    def begin(self, start: Fraction) -> None:
        """A unit that starts then comes next. Time counts from the start of the first one, and goes
        on behind text that joined."""
        if self._origin is None:
            self._origin = start
        if self._text_end >= self.first:
            self.offset -= max(self._text_end + 1 - self.step(start), 0)
            self._text_end = self.first - 1

    def append_text(self, end: int) -> None:
        """Text whose last token stands at `end` has become part of the stream."""
        self._text_end, self._newest = end, max(self._newest, end)

    def step(self, start: Fraction) -> int:
        """Temporal position of a unit that starts at `start` seconds, before it is known to fit."""
        since_origin = Fraction(0) if self._origin is None else start - self._origin
        return self.first + math.floor(since_origin * self._rate) - self.offset

    def excess(self, start: Fraction) -> int:
        """By how many steps a unit starting then would pass the trained range; 0 = it fits."""
        return max(0, self.step(start) - self._last)

    def rebase(self, steps: int) -> None:
        """Take `steps` off the time of all that is to come; what is cached must be shifted
        alike."""
        self.offset += steps
        self._newest = max(self._newest - steps, self._spatial_end)
        self._text_end -= steps

    @property
    def range(self) -> int:
        """Temporal steps between the first and the last allowed position."""
        return self._last - self.first

    def unit(self, start: Fraction) -> np.ndarray:
        """[P, 3] int32: the positions of all tokens of a unit, row-major over the merged grid."""
        self.begin(start)
        # a unit from before a jump past the whole range, whose time has been re-based since
        step = max(self.step(start), self.first)
        self._newest = max(self._newest, step, self._spatial_end)
        return np.column_stack([np.full(len(self._grid), step, np.int32), self._grid])

    @property
    def next_text(self) -> int:
        """Position of the first text token after all that was seen: max(t, h, w) + 1."""
        return self._newest + 1


def text_positions(first: int, count: int) -> np.ndarray:
    """[count, 3] int32: a run of text, t = h = w."""
    return np.repeat(np.arange(first, first + count, dtype=np.int32)[:, None], 3, axis=1)
