"""Which temporal units a question may see, besides the prompt and its conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from vicort.runtime.policies.registry import MOST, Policy, Registry


@dataclass(frozen=True)
class Remembered:
    """What memory still holds of one chunk."""

    chunk: int
    units: tuple[int, ...]
    digest: np.ndarray  # [width] float32, mean of its kept tokens as they entered the language model


class Retrieval(Policy):
    def choose(self, question: np.ndarray, memory: Sequence[Remembered]) -> list[int]:
        """Units, ascending. question: [width] float32, the mean embedding of its tokens; memory: its chunks in order."""
        raise NotImplementedError

    def most_units(self, chunk_units: int) -> int | None:
        """The most units it ever chooses, which bounds what must be recalled at once; None = all there are."""
        raise NotImplementedError


class AllUnits(Retrieval):
    policy: ClassVar[str] = "all"

    def choose(self, question: np.ndarray, memory: Sequence[Remembered]) -> list[int]:
        return [unit for chunk in memory for unit in chunk.units]

    def most_units(self, chunk_units: int) -> int | None:
        return None


class SimilarChunks(Retrieval):
    """ViCoStream's retrieval: the `top` chunks by cosine between mean embeddings, of equals the earlier.

    `recent` latest chunks are seen besides; the published code has none (0), and then cannot say what is there now.
    """

    policy: ClassVar[str] = "similar-chunks"
    top: int = Field(ge=0, le=MOST)
    recent: int = Field(0, ge=0, le=MOST)

    def choose(self, question: np.ndarray, memory: Sequence[Remembered]) -> list[int]:
        if not memory:
            return []
        scores = _cosines(np.stack([chunk.digest for chunk in memory]), question)
        best = set(np.argsort(-scores, kind="stable")[: self.top].tolist())
        best |= set(range(max(len(memory) - self.recent, 0), len(memory)))
        return [unit for place in sorted(best) for unit in memory[place].units]

    def most_units(self, chunk_units: int) -> int | None:
        return (self.top + self.recent) * chunk_units


class EvenUnits(Retrieval):
    """Up to `units` units, evenly spaced over all that memory holds, its first and its last among them."""

    policy: ClassVar[str] = "even-units"
    units: int = Field(ge=2, le=MOST)

    def choose(self, question: np.ndarray, memory: Sequence[Remembered]) -> list[int]:
        held = [unit for chunk in memory for unit in chunk.units]
        if len(held) <= self.units:
            return held
        places = np.linspace(0, len(held) - 1, self.units).round().astype(int)
        return [held[place] for place in places]

    def most_units(self, chunk_units: int) -> int | None:
        return self.units


RETRIEVALS = Registry("retrieval", AllUnits, SimilarChunks, EvenUnits)


def _cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """[n] of each row [n, width] with a vector; 0 where one of them is nothing."""
    norms = np.sqrt(np.einsum("nw,nw->n", rows, rows)) * np.linalg.norm(vector)
    return np.divide(rows @ vector, norms, out=np.zeros(len(rows), norms.dtype), where=norms > 0)
