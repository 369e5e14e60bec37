"""Which temporal units a question may see, besides the prompt and its conversation."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import numpy as np
from pydantic import Field

from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.chunk_index import ChunkIndex
from vicort.runtime.policies.registry import MOST, Policy, Registry


class Retrieval(Policy):
    # True: a question reads every unit, so all of memory must be on the device
    reads_everything: ClassVar[bool] = False
    compares: ClassVar[bool] = False  # whether it asks how alike chunks are

    def choose(self, question: np.ndarray, memory: ChunkIndex) -> list[int]:
        """Units, ascending. question: [width] float32, the mean embedding of its tokens."""
        raise NotImplementedError

    def check(self, system: str, chunk_units: int) -> None:
        """Raises ConfigError if the policy cannot be kept to with chunks of so many units."""
        return None

    def most_units(self, chunk_units: int) -> int | None:
        """The most units it ever chooses, which bounds what must be recalled at once; None = all
        there are."""
        raise NotImplementedError


class AllUnits(Retrieval):
    policy: ClassVar[str] = "all"
    reads_everything: ClassVar[bool] = True

    def choose(self, question: np.ndarray, memory: ChunkIndex) -> list[int]:
        return [unit for chunk in memory for unit in chunk.units]

    def most_units(self, chunk_units: int) -> int | None:
        return None


class SimilarChunks(Retrieval):
    """ViCoStream's retrieval: the `top` chunks by cosine between mean embeddings, of equals the
    earlier.

    `recent` latest chunks are seen besides; the published code has none (0), and then cannot say
    what is there now.
    """

    policy: ClassVar[str] = "similar-chunks"
    top: int = Field(ge=0, le=MOST)
    recent: int = Field(0, ge=0, le=MOST)

    def choose(self, question: np.ndarray, memory: ChunkIndex) -> list[int]:
        best = set(np.argsort(-memory.cosines(question), kind="stable")[: self.top].tolist())
        best |= set(range(max(len(memory) - self.recent, 0), len(memory)))
        return _units(memory, best)

    def most_units(self, chunk_units: int) -> int | None:
        return (self.top + self.recent) * chunk_units


class DistinctChunks(Retrieval):
    """Chunks that are like the question and unlike each other, in a room that no stream outgrows.

    One after another, the chunk with the largest `relevance` * cosine to the question - (1 -
    `relevance`) * largest cosine to a chunk that is chosen already, of equals the earlier; maximal
    marginal relevance (Carbonell and Goldstein, SIGIR 1998, doi 10.1145/290941.291025). A chunk
    that does not fit into what is left of the pages of `units` whole units is passed over; the
    `recent` latest chunks are chosen first. So a question reads about as much whether much happens
    or little, and stretches that look alike, which are most of what a camera sees, stand for each
    other.
    """

    policy: ClassVar[str] = "distinct-chunks"
    compares: ClassVar[bool] = True
    units: int = Field(ge=1, le=MOST)
    recent: int = Field(1, ge=0, le=MOST)
    relevance: float = Field(0.5, ge=0, lt=1)

    def choose(self, question: np.ndarray, memory: ChunkIndex) -> list[int]:
        pages = np.array([chunk.pages for chunk in memory], int)
        worth = memory.cosines(question) * (self.relevance / (1 - self.relevance))
        gain = worth + 1  # as for the least cosine there is: nothing is chosen yet
        latest = range(max(len(memory) - self.recent, 0), len(memory))
        left, chosen = self.units * memory.unit_pages, set[int]()
        while len(chosen) < len(memory):
            place = latest[len(chosen)] if len(chosen) < len(latest) else int(gain.argmax())
            if gain[place] == -np.inf:
                break
            if pages[place] > left:
                gain[pages > left] = -np.inf  # for good: room only shrinks
                continue
            chosen.add(place)
            left -= pages[place]
            np.minimum(gain, worth - memory.likeness(place), out=gain)
            gain[place] = -np.inf
        return _units(memory, chosen)

    def most_units(self, chunk_units: int) -> int | None:
        return self.units

    def check(self, system: str, chunk_units: int) -> None:
        if self.units < self.recent * chunk_units:
            raise ConfigError(
                f"system {system} reads {self.units} units, and its {self.recent} latest chunks "
                f"may hold {self.recent * chunk_units}: "
                f"set retrieval.units to at least that, or retrieval.recent lower, in its YAML file"
            )


class EvenUnits(Retrieval):
    """Up to `units` units, evenly spaced over all that memory holds, its first and its last among
    them."""

    policy: ClassVar[str] = "even-units"
    units: int = Field(ge=2, le=MOST)

    def choose(self, question: np.ndarray, memory: ChunkIndex) -> list[int]:
        held = [unit for chunk in memory for unit in chunk.units]
        if len(held) <= self.units:
            return held
        places = np.linspace(0, len(held) - 1, self.units).round().astype(int)
        return [held[place] for place in places]

    def most_units(self, chunk_units: int) -> int | None:
        return self.units


RETRIEVALS = Registry("retrieval", AllUnits, SimilarChunks, DistinctChunks, EvenUnits)


def _units(memory: ChunkIndex, places: Collection[int]) -> list[int]:
    """Units of the chunks at these places, ascending."""
    return [unit for place, chunk in enumerate(memory) if place in places for unit in chunk.units]
