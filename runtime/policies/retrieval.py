"""Which temporal units a question may attend to, besides the prompt and its conversation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.chunk_index import IndexedChunks
from vicort.runtime.policies.policy import MAX_COUNT, Policy

# the words of a question, or all tokens that are run for it: those of the template after the video
QueryTokens = Literal["question", "prefilled"]


class AskAgain(BaseModel):
    """A question whose first token is improbable is run again over more of memory, before anything
    of its answer is given out."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    units: int = Field(ge=1, le=MAX_COUNT)  # the second run reads at most as many
    # the second run takes place where the most probable first token has less than this
    below: float = Field(gt=0, le=1)


class Retrieval(Policy):
    # True: a question reads every unit, so all of memory must be on the device
    reads_everything: ClassVar[bool] = False
    compares: ClassVar[bool] = False  # whether it uses the cosines between chunks

    @property
    def query_tokens(self) -> QueryTokens:
        """Whose mean embedding stands for a question."""
        return "question"

    def choose(self, question: np.ndarray, memory: IndexedChunks) -> list[int]:
        """The units to read, ascending.

        question: [width] float32, the mean embedding of its tokens.
        """
        raise NotImplementedError

    @property
    def ask_again(self) -> AskAgain | None:
        """When a question is run again, with what `wider` chooses; None: never."""
        return None

    def wider(self) -> Self:
        """The policy by which a question that is run again chooses."""
        return self

    def check(self, system: str, chunk_units: int) -> None:
        """Raises ConfigError if the policy cannot work with chunks of `chunk_units` units."""
        return None

    def max_units(self, chunk_units: int) -> int | None:
        """The maximum number of units that `choose` returns, and that of `wider`; None: no maximum.

        It bounds how many pages one question recalls from the host.
        """
        raise NotImplementedError

    def min_units(self, chunk_units: int) -> int:
        """The smallest maximum that `limited` takes."""
        return 0

    def limited(self, units: int, chunk_units: int) -> Self:
        """The policy reading at most `units` units, which are at least `min_units`."""
        return self


class AllUnits(Retrieval):
    policy: Literal["all"] = "all"
    reads_everything: ClassVar[bool] = True

    def choose(self, question: np.ndarray, memory: IndexedChunks) -> list[int]:
        return [unit for chunk in memory for unit in chunk.units]

    def max_units(self, chunk_units: int) -> int | None:
        return None


class SimilarChunks(Retrieval):
    """ViCoStream's retrieval: the `top` chunks by cosine between mean embeddings; among equals, the
    earlier.

    The `recent` latest chunks are read as well. The published code reads none (0) and then cannot
    answer about the present.
    """

    policy: Literal["similar-chunks"] = "similar-chunks"
    top: int = Field(ge=0, le=MAX_COUNT)
    recent: int = Field(default=0, ge=0, le=MAX_COUNT)
    query: QueryTokens = "question"

    @property
    def query_tokens(self) -> QueryTokens:
        return self.query

    def choose(self, question: np.ndarray, memory: IndexedChunks) -> list[int]:
        best = set(np.argsort(-memory.cosines(question), kind="stable")[: self.top].tolist())
        best |= set(range(max(len(memory) - self.recent, 0), len(memory)))
        return _units(memory, best)

    def max_units(self, chunk_units: int) -> int | None:
        return (self.top + self.recent) * chunk_units

    def min_units(self, chunk_units: int) -> int:
        return (min(self.top, 1) + self.recent) * chunk_units

    def limited(self, units: int, chunk_units: int) -> Self:
        top = min(self.top, units // chunk_units - self.recent)
        return self.model_copy(update={"top": top})


class DistinctChunks(Retrieval):
    """Chunks that are similar to the question and different from each other, within a fixed budget
    of pages.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998, doi 10.1145/290941.291025): in
    each step choose the chunk with the largest `relevance` * cosine to the question - (1 -
    `relevance`) * largest cosine to a chosen chunk; among equals, the earlier. The `recent` latest
    chunks are chosen first. The budget is the pages of `units` whole units; a chunk that exceeds
    the rest of the budget is skipped. A question therefore reads about the same number of tokens in
    busy and in still scenes, and similar scenes, which are most of a camera's stream, are read
    once.
    """

    policy: Literal["distinct-chunks"] = "distinct-chunks"
    compares: ClassVar[bool] = True
    units: int = Field(ge=1, le=MAX_COUNT)
    recent: int = Field(default=1, ge=0, le=MAX_COUNT)
    relevance: float = Field(default=0.5, ge=0, lt=1)
    again: AskAgain | None = None

    @model_validator(mode="after")
    def _again_reads_more(self) -> Self:
        if self.again and self.again.units <= self.units:
            raise ValueError(
                f"again.units {self.again.units} is not more than the {self.units} units of the "
                "first run: set it higher, or leave again out"
            )
        return self

    @property
    def ask_again(self) -> AskAgain | None:
        return self.again

    def wider(self) -> Self:
        units = self.again.units if self.again else self.units
        return self.model_copy(update={"units": units, "again": None})

    def choose(self, question: np.ndarray, memory: IndexedChunks) -> list[int]:
        pages = np.array([chunk.pages for chunk in memory], int)
        worth = memory.cosines(question) * (self.relevance / (1 - self.relevance))
        gain = worth + 1  # nothing is chosen yet: as if the largest cosine were -1
        latest = range(max(len(memory) - self.recent, 0), len(memory))
        left, chosen = self.units * memory.unit_pages, set[int]()
        while len(chosen) < len(memory):
            index = latest[len(chosen)] if len(chosen) < len(latest) else int(gain.argmax())
            if gain[index] == -np.inf:
                break
            if pages[index] > left:
                gain[pages > left] = -np.inf  # the rest of the budget only shrinks
                continue
            chosen.add(index)
            left -= pages[index]
            np.minimum(gain, worth - memory.likeness(index), out=gain)
            gain[index] = -np.inf
        return _units(memory, chosen)

    def max_units(self, chunk_units: int) -> int | None:
        return self.wider().units

    def min_units(self, chunk_units: int) -> int:
        return max(self.recent * chunk_units, 1)

    def limited(self, units: int, chunk_units: int) -> Self:
        again = self.again
        if again:
            more = again.model_copy(update={"units": min(again.units, units)})
            again = more if more.units > self.units else None
        return self.model_copy(update={"units": min(self.units, units), "again": again})

    def check(self, system: str, chunk_units: int) -> None:
        if self.units < self.recent * chunk_units:
            raise ConfigError(
                f"system {system} reads {self.units} units, and its {self.recent} latest chunks "
                f"may hold {self.recent * chunk_units}: "
                f"set retrieval.units to at least that, or retrieval.recent lower, in its YAML file"
            )


class EvenUnits(Retrieval):
    """Up to `units` units, evenly spaced over all units in memory, the first and the last
    included."""

    policy: Literal["even-units"] = "even-units"
    units: int = Field(ge=2, le=MAX_COUNT)

    def choose(self, question: np.ndarray, memory: IndexedChunks) -> list[int]:
        held = [unit for chunk in memory for unit in chunk.units]
        if len(held) <= self.units:
            return held
        indices = np.linspace(0, len(held) - 1, self.units).round().astype(int)
        return [held[index] for index in indices]

    def max_units(self, chunk_units: int) -> int | None:
        return self.units

    def min_units(self, chunk_units: int) -> int:
        return 2

    def limited(self, units: int, chunk_units: int) -> Self:
        return self.model_copy(update={"units": min(self.units, units)})


AnyRetrieval = Annotated[
    AllUnits | SimilarChunks | DistinctChunks | EvenUnits, Field(discriminator="policy")
]


def _units(memory: IndexedChunks, indices: Collection[int]) -> list[int]:
    """Units of the chunks at these indices, ascending."""
    return [unit for index in sorted(indices) for unit in memory.at(index).units]
