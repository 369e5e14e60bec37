"""What becomes of chunks that leave the recent window, where each layer and head keeps and reads its own tokens."""

from __future__ import annotations

from typing import ClassVar

from numpy.typing import DTypeLike
from pydantic import Field

from vicort.runtime.device import Device
from vicort.runtime.long_term.key_clusters import KeyClusterMemory
from vicort.runtime.long_term.long_term import LongTerm
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.registry import MOST, Policy, Registry
from vicort.runtime.stage_clock import StageClock


class LongTermPolicy(Policy):
    def open(self, device: Device, model: ModelSpec, host_mb: float, dtype: DTypeLike, clock: StageClock) -> LongTerm:
        """The memory, within `host_mb` MB of 1e6 bytes. clock: for what it does on streams of its own.

        Raises MemoryBudgetError, with the least that works, if that is too little.
        """
        raise NotImplementedError


class KeyClusters(LongTermPolicy):
    """ReSV (V-Rex, arXiv 2512.12284): clusters of keys by hash bits, chosen by WiCSum; see `long_term/key_clusters.py`."""

    policy: ClassVar[str] = "key-clusters"
    hash_bits: int = Field(ge=1, le=4096)  # N_hp, random hyperplanes
    threshold: int = Field(ge=1, le=4096)  # Th_hd: a key joins a cluster less than so many bits away
    recent: int = Field(ge=1, le=MOST)  # clusters of a layer and head that still take tokens: those opened last
    most_tokens: int = Field(ge=1, le=MOST)  # a cluster that holds so many before a unit takes none of it
    share: float = Field(gt=0, le=1)  # Th_r-wics
    most_cells: int = Field(ge=1, le=MOST)  # that a layer and head reads at a time, which bounds what the device holds
    seed: int = Field(0, ge=0, le=MOST)  # of the hyperplanes

    def open(self, device: Device, model: ModelSpec, host_mb: float, dtype: DTypeLike, clock: StageClock) -> LongTerm:
        return KeyClusterMemory(model, host_mb, dtype, self)


LONG_TERMS = Registry[LongTermPolicy]("long_term", KeyClusters)
