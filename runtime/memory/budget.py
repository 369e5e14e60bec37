"""Memory budgets that follow the model and the machine.

A session takes at most a quarter of the memory of the machine, or of the limit of its cgroup, and a
quarter of that of a GPU. Both are totals, so that the same machine always gives the same budget.
Within that, a system takes what it can use: those that keep a window and nothing else the pages of
that window; the others room for `memory.hours` of a stream of which nothing is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.typing import DTypeLike

from vicort.runtime.core import UNIT_FRAMES, MemoryEvent
from vicort.runtime.devices.machine import MachineMemory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.factory import long_term_size
from vicort.runtime.memory.long_term.protocols import LongTermSize
from vicort.runtime.memory.memory_plan import LeastPages, MemoryPlan, too_small, unit_pages
from vicort.runtime.policies.system import Budget, System

SHARE = 1 / 4  # of the machine's memory that the sessions of one process take
# Of memory that both tiers share, and of the history that they hold together, the device takes a
# third, or what its smallest budget needs, up to two thirds.
DEVICE_PART, MAX_DEVICE_PART = 1 / 3, 2 / 3


@dataclass(frozen=True)
class MemoryRequest:
    """What the caller of a session says about its budget."""

    device_mb: float | None = None  # None: as the system says
    host_mb: float | None = None
    sessions: int = 1  # that share the machine's memory


@dataclass(frozen=True)
class FittedSystem:
    """A system with both budgets as numbers."""

    system: System
    # seconds of a stream, nothing dropped, that both tiers hold; None: a long-term memory decides
    seconds: float | None
    given_up: str = ""  # what the system does less of than its file says

    @property
    def budget(self) -> Budget:
        return self.system.budget

    @property
    def event(self) -> MemoryEvent:
        return MemoryEvent(*self.budget, self.seconds)


def fit_budget(
    system: System,
    model: ModelSpec,
    dtype: DTypeLike,
    prompt_tokens: int,
    machine: MachineMemory,
    request: MemoryRequest = MemoryRequest(),
) -> FittedSystem:
    """Replace automatic budgets by numbers, and both by those that the caller asks for.

    A number in a system's file is kept as it is. Where the device budget is automatic or the
    caller's, and too small for what a question may read, questions read less. Raises
    MemoryBudgetError, with the smallest budget that works, if that is not enough for one chunk.
    """
    if request.host_mb and _is_device_only(system):
        raise MemoryBudgetError(
            f"--host-memory {request.host_mb:g}MB: system {system.name} keeps everything on the "
            "device: leave it out"
        )
    host_mb = system.memory.host_mb if request.host_mb is None else request.host_mb
    device_mb = system.memory.device_mb if request.device_mb is None else request.device_mb
    fit = _Fit(system, model, dtype, prompt_tokens, machine, request.sessions)
    given_up = ""
    if device_mb is None or host_mb is None:
        device_mb, host_mb = fit.chosen(device_mb, host_mb)
    if request.device_mb is not None or system.memory.device_mb is None:
        system, given_up = fit.limited(device_mb, host_mb)
    system = system.with_(memory={"device_mb": device_mb, "host_mb": host_mb})
    plan = MemoryPlan.of(model, system, fit.long_term(host_mb), prompt_tokens, fit.bytes_of_page)
    units = (plan.stream + plan.host) / unit_pages(model)
    seconds = None if system.long_term else units * UNIT_FRAMES / model.fps
    return FittedSystem(system, seconds, given_up)


def _is_device_only(system: System) -> bool:
    return system.memory.host_mb == 0


class _Fit:
    def __init__(
        self,
        system: System,
        model: ModelSpec,
        dtype: DTypeLike,
        prompt_tokens: int,
        machine: MachineMemory,
        sessions: int,
    ) -> None:
        self._system, self._model, self._dtype = system, model, dtype
        self._prompt_tokens = prompt_tokens
        self._shared = machine.device is None
        self._host_limit = machine.host * SHARE / sessions / 1e6
        self._device_limit = (machine.device or machine.host) * SHARE / sessions / 1e6
        self.bytes_of_page = page_bytes(model, dtype, system.long_term is not None)
        self._chunk_units = model.chunk_frames // UNIT_FRAMES

    def chosen(self, device_mb: float | None, host_mb: float | None) -> tuple[float, float]:
        """Both budgets in whole MB; a number is kept."""
        system, history = self._system, self._history_mb
        keeps_window_only = system.ingest.slides or not system.ingest.prefills
        if device_mb is None:
            smallest = self._smallest_mb(host_mb)
            if keeps_window_only or system.long_term:
                wanted = smallest
            elif host_mb == 0:
                wanted = smallest + history
            else:
                wanted = smallest + history * DEVICE_PART
            limit = self._device_limit
            if self._shared and host_mb is None:
                limit = min(max(limit * DEVICE_PART, smallest), limit * MAX_DEVICE_PART)
            device_mb = max(math.floor(min(wanted, limit)), 1)
        if host_mb is None:
            left = self._host_limit - (device_mb if self._shared else 0)
            history *= 1 if system.long_term else MAX_DEVICE_PART
            host_mb = max(math.floor(min(left, history)), 1)
        return device_mb, host_mb

    def limited(self, device_mb: float, host_mb: float) -> tuple[System, str]:
        """The system, reading what fits, and what it gives up. Raises MemoryBudgetError."""
        system, pages = self._system, int(device_mb * 1e6) // self.bytes_of_page
        least = self._least(host_mb)
        wanted = system.retrieval.max_units(self._chunk_units)
        if wanted is None or system.long_term or least.total <= pages:
            return system, ""
        others = least.total - least.recalled
        min_units = min(system.retrieval.min_units(self._chunk_units), wanted)
        smallest = others + min_units * unit_pages(self._model)
        if smallest > pages:
            raise too_small(device_mb, smallest * self.bytes_of_page, self._model, system)
        units = (pages - others) // unit_pages(self._model)
        retrieval = system.retrieval.limited(units, self._chunk_units)
        fewer = retrieval.max_units(self._chunk_units)
        return (
            system.with_(retrieval=retrieval),
            f"with {device_mb:g} MB, questions of system {system.name} read at most {fewer} units "
            f"instead of {wanted}: --memory {self._smallest_mb(host_mb):.0f}MB would hold all",
        )

    def long_term(self, host_mb: float) -> LongTermSize | None:
        policy = self._system.long_term
        return long_term_size(policy, self._model, host_mb, self._dtype) if policy else None

    @property
    def _history_mb(self) -> float:
        """Of `memory.hours`, nothing dropped."""
        units = self._system.memory.hours * 3600 * self._model.fps / UNIT_FRAMES
        return units * unit_pages(self._model) * self.bytes_of_page / 1e6

    def _least(self, host_mb: float | None) -> LeastPages:
        """host_mb: None = as much as there may be."""
        host_mb = self._host_limit if host_mb is None else host_mb
        long_term = self.long_term(host_mb)
        host = 0 if long_term else int(host_mb * 1e6) // self.bytes_of_page
        return LeastPages.of(self._model, self._system, long_term, self._prompt_tokens, host)

    def _smallest_mb(self, host_mb: float | None) -> float:
        return math.ceil(self._least(host_mb).total * self.bytes_of_page / 1e6)
