"""What happens when the last tier of memory is full."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Reversible
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field, PlainSerializer

from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.policies.chunk_index import ChunkIndex
from vicort.runtime.policies.policy import Policy

LATEST = 8  # chunks that DropAlike keeps, whatever they are like
EVICTED_SHARE = 64  # ThinEvenly evicts one unit in 64 of those in the tier at a time


class UnitNumbers(Collection[int], Reversible[int], Protocol):
    """Ascending."""


class Overflow(Policy):
    refuses: ClassVar[bool] = False  # whether a full memory ends the stream with an error

    # whether it asks for `ChunkIndex.most_alike`
    compares: ClassVar[bool] = False

    def victims(self, units: UnitNumbers, chunks: ChunkIndex) -> list[int]:
        """The units to evict now, at least one.

        units: all units in the full tier, at least one; no unit in memory is older. chunks: all
        that are remembered. Raises MemoryBudgetError if the policy evicts nothing.
        """
        raise NotImplementedError


class Refuse(Overflow):
    policy: Literal["refuse"] = "refuse"
    refuses: ClassVar[bool] = True

    def victims(self, units: UnitNumbers, chunks: ChunkIndex) -> list[int]:
        raise MemoryBudgetError(
            f"memory is full with {len(units)} units and this system forgets nothing: "
            "give more with --memory or memory.device_mb, or take a bounded one with --system "
            "distinct"
        )


class DropOldest(Overflow):
    policy: Literal["drop-oldest"] = "drop-oldest"

    def victims(self, units: UnitNumbers, chunks: ChunkIndex) -> list[int]:
        return [next(iter(units))]


class DropAlike(Overflow):
    """Evicts the chunk that is most like another one in memory, by the cosine of their digests.

    Of two chunks that are most alike, the one goes whose neighbours in time are closer to each
    other, so that what stays of an unchanging scene is spread over time. The LATEST chunks stay,
    because new chunks attend to them; where a tier holds no others, its oldest unit goes.
    """

    policy: Literal["drop-alike"] = "drop-alike"
    compares: ClassVar[bool] = True

    def victims(self, units: UnitNumbers, chunks: ChunkIndex) -> list[int]:
        evictable = min(chunks.until(next(reversed(units))), len(chunks) - LATEST)
        if evictable < 1:
            return [next(iter(units))]
        return [unit for unit in chunks.most_alike(evictable).units if unit in units]


class ThinEvenly(Overflow):
    """Evicts the unit whose number has the fewest factors of two; among equals, the oldest.

    A full memory first loses every second unit, oldest first, then every second of the rest, and so
    on. The units that stay are the multiples of a step s, or of 2 s in the older part, and s grows
    with the stream. A large memory loses a sixty-fourth of its units at a time, so that the search
    for the next victims is rare.
    """

    policy: Literal["thin-evenly"] = "thin-evenly"

    def victims(self, units: UnitNumbers, chunks: ChunkIndex) -> list[int]:
        return heapq.nsmallest(
            max(len(units) // EVICTED_SHARE, 1),
            units,
            key=lambda unit: (unit & -unit if unit else math.inf, unit),
        )


def _by_name(value: Any) -> Any:
    """`when_full: NAME` is short for `when_full: {policy: NAME}`: these have no parameters."""
    return value if isinstance(value, Overflow) else {"policy": value}


AnyOverflow = Annotated[
    Refuse | DropOldest | DropAlike | ThinEvenly,
    Field(discriminator="policy"),
    BeforeValidator(_by_name),
    PlainSerializer(lambda overflow: overflow.policy, return_type=str),
]
