"""What becomes of chunks that leave the recent window, where each layer and head keeps and reads its own tokens."""

from __future__ import annotations

from numpy.typing import DTypeLike

from vicort.runtime.device import Device
from vicort.runtime.long_term.long_term import LongTerm
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.registry import Policy, Registry
from vicort.runtime.stage_clock import StageClock


class LongTermPolicy(Policy):
    def open(self, device: Device, model: ModelSpec, host_mb: float, dtype: DTypeLike, clock: StageClock) -> LongTerm:
        """The memory, within `host_mb` MB of 1e6 bytes. clock: for what it does on streams of its own.

        Raises MemoryBudgetError, with the least that works, if that is too little.
        """
        raise NotImplementedError


LONG_TERMS: Registry[LongTermPolicy] = Registry("long_term")
