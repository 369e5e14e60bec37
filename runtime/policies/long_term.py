"""What becomes of chunks that leave the recent window, where each layer and head keeps and reads its own tokens."""

from __future__ import annotations

from typing import ClassVar

from numpy.typing import DTypeLike
from pydantic import Field

from vicort.runtime.device import Device
from vicort.runtime.long_term.long_term import LongTerm
from vicort.runtime.long_term.page_digest import Digest
from vicort.runtime.long_term.page_recall import open_page_recall
from vicort.runtime.long_term.speculative import Speculation
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.registry import MOST, Policy, Registry
from vicort.runtime.stage_clock import StageClock


class LongTermPolicy(Policy):
    def open(self, device: Device, model: ModelSpec, host_mb: float, dtype: DTypeLike, clock: StageClock) -> LongTerm:
        """The memory, within `host_mb` MB of 1e6 bytes. clock: for what it does on streams of its own.

        Raises MemoryBudgetError, with the least that works, if that is too little.
        """
        raise NotImplementedError


class PageRecall(LongTermPolicy):
    """FreeKV (arXiv 2505.13109): every page stays on the host, and each KV head reads those that an earlier run's queries chose, recalled
    behind the runs between; heads whose queries have turned are corrected. Here for chunks too, not only for answers."""

    policy: ClassVar[str] = "page-recall"
    budget: int = Field(1024, gt=0, le=MOST)  # tokens that a KV head chooses, besides the prompt and the recent window
    digest: Digest = "mean-radius"
    chunks: bool = True  # whether chunks read it, and not questions only
    tau_prefill: float | None = Field(0.8, ge=-1, le=1)  # see `Speculation`
    tau_decode: float | None = Field(0.8, ge=-1, le=1)
    speculative: bool = True  # False: recall is waited for, before each run

    def open(self, device: Device, model: ModelSpec, host_mb: float, dtype: DTypeLike, clock: StageClock) -> LongTerm:
        speculation = Speculation(self.tau_prefill, self.tau_decode, self.speculative)
        return open_page_recall(device, model, host_mb, dtype, clock, self.budget, self.digest, speculation, self.chunks)


LONG_TERMS: Registry[LongTermPolicy] = Registry("long_term", PageRecall)
