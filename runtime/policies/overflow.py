"""What happens when the last tier of memory is full."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from typing import ClassVar

from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.policies.registry import Policy, Registry

BATCH = 64  # ThinEvenly forgets the BATCH-th part of what it holds at a time


class Overflow(Policy):
    refuses: ClassVar[bool] = False  # whether a full memory ends the stream with an error

    def victims(self, units: Collection[int]) -> list[int]:
        """Of the units in the full tier, ascending and at least one, those to forget now: at least
        one."""
        raise NotImplementedError


class Refuse(Overflow):
    policy: ClassVar[str] = "refuse"
    refuses: ClassVar[bool] = True

    def victims(self, units: Collection[int]) -> list[int]:
        raise MemoryBudgetError(
            f"memory is full with {len(units)} units and this system forgets nothing: "
            "raise memory.device_mb in its YAML file, or take a bounded one with --system "
            "vicostream"
        )


class DropOldest(Overflow):
    policy: ClassVar[str] = "drop-oldest"

    def victims(self, units: Collection[int]) -> list[int]:
        return [next(iter(units))]


class ThinEvenly(Overflow):
    """Forgets the unit whose number has the fewest factors of two, of equals the oldest.

    From a full memory this removes every second unit, oldest first, then every second of what is
    left: what stays are the multiples of s, and of 2 s in the older part, s growing with the
    stream. A large memory loses a sixty-fourth at a time, which makes finding the next cheap.
    """

    policy: ClassVar[str] = "thin-evenly"

    def victims(self, units: Collection[int]) -> list[int]:
        return heapq.nsmallest(
            max(len(units) // BATCH, 1),
            units,
            key=lambda unit: (unit & -unit if unit else math.inf, unit),
        )


OVERFLOWS = Registry("when_full", Refuse, DropOldest, ThinEvenly)
