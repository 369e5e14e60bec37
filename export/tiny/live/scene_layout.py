"""Converts a scene to tokens, positions and labels, as the runtime would.

prompt, units, <|vision_end|>INSTRUCTION, yes<|im_end|>, units, red star<|im_end|>, units, …

After the last token of each unit the next token decides: <|im_end|>, which is not added to the
context, means silence. Text starts one after the largest position before it. Positions of units
follow time, plus a shift: the minimum that puts the first unit after a text past its end. The shift
applies to all later units.
"""

from __future__ import annotations

import numpy as np

from vicort.export.tiny.batches import IGNORED, Batch, stacked
from vicort.export.tiny.live.scenes import Scene, SceneTurn
from vicort.export.tiny.model import GRID, UNIT_TOKENS
from vicort.export.tiny.tokenizer import PROMPT, make_tokenizer

END = "<|im_end|>"
SILENCE, FIRST_WORD, WORD = range(3)  # kinds of labels
KINDS = ("silence", "speech", "word")


class ScenePositions:
    """Assigns positions in the order of the stream."""

    def __init__(self, prompt: int) -> None:
        self.first = prompt  # of the first unit, in t, h and w
        self._shift = 0
        self._newest = self._text_end = prompt - 1

    def unit(self, time: int) -> np.ndarray:
        """[3, 16] of a unit at `time`, in steps from the first one."""
        self._shift += max(0, self._text_end + 1 - (self.first + time + self._shift))
        t = self.first + time + self._shift
        row, column = np.divmod(np.arange(UNIT_TOKENS), GRID)
        self._newest = max(self._newest, t, self.first + GRID - 1)
        return np.stack([np.full(UNIT_TOKENS, t), self.first + row, self.first + column])

    def text(self, count: int) -> np.ndarray:
        """[3, count] of a run of text."""
        start = self._newest + 1
        self._newest = self._text_end = start + count - 1
        return np.tile(np.arange(start, start + count), (3, 1))


class SceneLayout:
    """Converts scenes to a batch."""

    def __init__(self) -> None:
        self._tokenizer = make_tokenizer()
        self._prompt = self._encode(PROMPT)
        self._end = self._encode(END)[0]

    def batch(self, rng: np.random.Generator, scenes: list[Scene]) -> Batch:
        return stacked([self.cells(rng, scene) for scene in scenes])

    def cells(self, rng: np.random.Generator, scene: Scene) -> dict[str, np.ndarray]:
        """One stream: token, feature, label, kind and position [3] of each cell, and the attention
        mask."""
        rows, episode = _Rows(self._prompt), scene.episode
        turns = list(scene.turns)
        for unit in range(len(episode.units) + 1):
            while turns and turns[0].unit == unit:
                self._add_turn(rng, rows, turns.pop(0))
            if unit < len(episode.units):
                rows.unit(
                    episode.units[unit],
                    int(episode.times[unit]),
                    self._end if scene.silent[unit] else IGNORED,
                )
        return rows.laid(scene.window)

    def _add_turn(self, rng: np.random.Generator, rows: _Rows, turn: SceneTurn) -> None:
        answer = [*self._encode(turn.answer), self._end]
        if turn.question:
            # A question after an earlier turn may be a new question, or the next turn of a
            # conversation.
            opening = "<|im_start|>" if rows.turns and rng.random() < 0.5 else "<|vision_end|>"
            question = self._encode(opening + turn.question)
            rows.text(question + answer, [IGNORED] * (len(question) - 1) + answer + [IGNORED])
        else:
            if turn.learnt:
                rows.decide(answer[0])
            rows.text(
                answer, [token if turn.learnt else IGNORED for token in answer[1:]] + [IGNORED]
            )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


class _Rows:
    def __init__(self, prompt: list[int]) -> None:
        count = len(prompt)
        self._position = ScenePositions(count)
        self._tokens = list(prompt)
        self._labels = [IGNORED] * count
        self._kinds = [-1] * count
        # row of the features; number of the unit that was newest, -1 = none
        self._features = [-1] * count
        self._units = [-1] * count
        self._visual = [False] * count
        self._positions = [np.tile(np.arange(count), (3, 1))]
        self.turns = 0
        self._unit = -1

    def unit(self, row: int, time: int, label: int) -> None:
        self._unit += 1
        self._tokens += [0] * UNIT_TOKENS
        self._features += range(row * UNIT_TOKENS, (row + 1) * UNIT_TOKENS)
        self._labels += [IGNORED] * UNIT_TOKENS
        self._kinds += [-1] * UNIT_TOKENS
        self._units += [self._unit] * UNIT_TOKENS
        self._visual += [True] * UNIT_TOKENS
        self._positions.append(self._position.unit(time))
        if label != IGNORED:
            self._labels[-1], self._kinds[-1] = label, SILENCE

    def decide(self, label: int) -> None:
        """Set the token that follows the newest unit."""
        self._labels[-1], self._kinds[-1] = label, FIRST_WORD

    def text(self, tokens: list[int], labels: list[int]) -> None:
        self._tokens += tokens
        self._labels += labels
        self._kinds += [-1 if label == IGNORED else WORD for label in labels]
        self._features += [-1] * len(tokens)
        self._units += [self._unit] * len(tokens)
        self._visual += [False] * len(tokens)
        self._positions.append(self._position.text(len(tokens)))
        self.turns += 1

    def laid(self, window: int) -> dict[str, np.ndarray]:
        """window: units that each token attends to besides all text, 0 = all."""
        size = len(self._tokens)
        mask = np.tri(size, dtype=bool)
        if window:
            unit, visual = np.array(self._units), np.array(self._visual)
            mask &= ~visual[None, :] | (unit[:, None] - unit[None, :] < window)
        return {
            "tokens": np.array(self._tokens),
            "feature": np.array(self._features),
            "positions": np.concatenate(self._positions, 1),
            "labels": np.array(self._labels),
            "kinds": np.array(self._kinds),
            "mask": mask,
        }
