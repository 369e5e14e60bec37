"""Memory budgets that follow the model and the machine.

The automatic budgets of a session take at most a quarter of the memory of the machine, or of the
limit of its cgroup, and a quarter of that of a GPU, or what engines and their runs leave there if
that is less, divided by the number of sessions. All are totals, so that the same machine and
engines always give the same budget. Within that, a system takes what it
can use: those that keep a window and nothing else the pages of that window; the others room for
`memory.hours` of a stream of which nothing is dropped, or for `memory.tokens`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from numpy.typing import DTypeLike

from vicort.runtime.argument_kinds import checked_real, checked_whole
from vicort.runtime.core import MemoryEvent
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.errors import ConfigError, HostBudgetError, MemoryBudgetError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.factory import long_term_size
from vicort.runtime.memory.long_term.protocols import LongTermSize
from vicort.runtime.memory.memory_plan import (
    LeastPages,
    MemoryPlan,
    chunk_units,
    host_tier_pages,
    pages_in,
    too_small,
    unit_pages,
    units_read,
)
from vicort.runtime.policies.system import MAX_MB, Budget, System
from vicort.runtime.safe_text import is_real, shown

SHARE = 1 / 4  # of the machine's memory, unless the caller says otherwise
# Of the share, where both tiers lie in the host's memory, and of the history that they hold
# together, the device takes a third, or what its questions may read, up to two thirds.
DEVICE_PART, MAX_DEVICE_PART = 1 / 3, 2 / 3
MAX_PINNED_MB = 8000  # the host tier of a GPU is page-locked when the session opens


MAX_SESSIONS = 1_000_000  # that share the memory of a machine


@dataclass(frozen=True)
class MemoryRequest:
    """What the caller of a session says about its budget."""

    device_mb: float | None = None  # None: as the system says
    host_mb: float | None = None
    sessions: int = 1  # that share the machine's memory
    share: float = SHARE  # of it that automatic budgets take at most

    def __post_init__(self) -> None:
        """Raises ConfigError for a budget that is none."""
        for name, megabytes in (("device_mb", self.device_mb), ("host_mb", self.host_mb)):
            if megabytes is None:
                continue
            if not is_real(megabytes) or not 0 <= megabytes <= MAX_MB:
                raise ConfigError(
                    f"{name} {shown(megabytes)}: give 0 to {MAX_MB:g} MB, or None for what the "
                    "system says"
                )
        checked_whole(self.sessions, "sessions", 1, MAX_SESSIONS)
        checked_real(self.share, "share", 0, 1)


@dataclass(frozen=True)
class FittedSystem:
    """A system with both budgets as numbers."""

    system: System
    # temporal units, nothing dropped, that are remembered; None: long-term memory decides that
    units: float | None
    given_up: str = ""  # what the system does less of than its file says

    @property
    def budget(self) -> Budget:
        return self.system.budget

    def event(self, fps: float | None) -> MemoryEvent:
        """fps: frames a second that are taken; None = not known."""
        if fps is None or self.units is None:
            return MemoryEvent(*self.budget, None)
        return MemoryEvent(*self.budget, self.units / self.system.units_a_second(fps))


def fit_budget(
    system: System,
    model: ModelSpec,
    dtype: DTypeLike,
    prompt_tokens: int,
    machine: MachineMemory,
    request: MemoryRequest = MemoryRequest(),
    fps: Fraction | None = None,
) -> FittedSystem:
    """Replace automatic budgets by numbers, and both by those that the caller asks for.

    fps: frames a second that are taken, at which `memory.hours` are hours; None = the system's.
    A number in a system's file is kept as it is. Where the device budget is automatic or the
    caller's, and too small for what a question may read, questions read less. Raises
    MemoryBudgetError, with budgets that work, if that is not enough, or if the machine has less
    memory than both; ConfigError for `memory.tokens` that are fewer than memory holds in any case.
    """
    own = system.memory
    if request.host_mb and not _can_spill(system):
        raise MemoryBudgetError(
            f"--host-memory {request.host_mb:g}MB: system {system.name} keeps everything on the "
            "device: leave it out"
        )
    host_mb = own.host_mb if request.host_mb is None else request.host_mb
    device_mb = own.device_mb if request.device_mb is None else request.device_mb
    fit = _Fit(system, model, dtype, prompt_tokens, machine, request, fps)
    if device_mb is None or host_mb is None:
        fit.check_tokens()
    if device_mb is None or host_mb is None:
        automatic = fit.automatic(with_host=host_mb is None or host_mb > 0)
        device_mb = automatic.device_mb if device_mb is None else device_mb
        host_mb = automatic.host_mb if host_mb is None else host_mb
    _check_machine(device_mb, host_mb, machine, request.sessions)
    given_up = ""
    if request.device_mb is not None or own.device_mb is None:
        system, given_up = fit.limited(device_mb, host_mb)
    system = system.with_(memory={"device_mb": device_mb, "host_mb": host_mb})
    size = fit.long_term(host_mb)
    plan = MemoryPlan.of(model, system, size, prompt_tokens, fit.bytes_of_page)
    return FittedSystem(system, fit.units_held(plan, host_mb), given_up)


def _check_machine(device_mb: float, host_mb: float, machine: MachineMemory, sessions: int) -> None:
    """Raises MemoryBudgetError for budgets that the system would kill the process for."""
    on_host = host_mb + (device_mb if machine.device is None else 0)
    each = f" for each of {sessions} sessions" if sessions > 1 else ""
    left = None if machine.device is None else machine.left_on_device(sessions)
    beside = " beside engines and their runs" if machine.engines or machine.runs else ""
    for what, asked, there, all_of_it in (
        ("this machine or its cgroup", on_host, machine.host, "in all"),
        ("the GPU", device_mb, left, beside.strip() or "in all"),
    ):
        if there is not None and asked * sessions * 1e6 > there:
            raise MemoryBudgetError(
                f"--memory {device_mb:.0f}MB --host-memory {host_mb:.0f}MB{each}: {what} has "
                f"{there / 1e6:.0f} MB {all_of_it}: give less, or leave them out for a share of it"
            )


def _can_spill(system: System) -> bool:
    """Whether there may be a host tier."""
    unbounded = system.retrieval.reads_everything or system.ingest.window is None
    return system.long_term is not None or not unbounded


class _Fit:
    def __init__(
        self,
        system: System,
        model: ModelSpec,
        dtype: DTypeLike,
        prompt_tokens: int,
        machine: MachineMemory,
        request: MemoryRequest,
        fps: Fraction | None,
    ) -> None:
        self._rate = system.units_a_second(float(fps or system.frame_rate(model.fps)))
        self._system, self._model, self._dtype = system, model, dtype
        self._prompt_tokens, self._sessions = prompt_tokens, request.sessions
        self._shared = machine.device is None
        # MB, for this session
        share, sessions = request.share, request.sessions
        self._host_share = machine.host * share / sessions / 1e6
        device_share = (machine.device or machine.host) * share
        self._device_share = min(device_share, machine.left_on_device(sessions)) / sessions / 1e6
        self.bytes_of_page = page_bytes(model, dtype, system.long_term is not None)

    def check_tokens(self) -> None:
        """Raises ConfigError where automatic budgets hold more than `memory.tokens`: there is
        always room for a new chunk and those that it attends to, and a long-term memory has a
        smallest size."""
        system, given = self._system, self._system.memory.tokens
        if given is None or self._keeps_window_only:
            return
        seen = 0 if system.long_term else system.ingest.window or 0  # chunks
        units: float = self._chunk_units * (1 + seen)
        units += self._least_host_mb * 1e6 / self._unit_pages / self.bytes_of_page
        smallest = math.ceil(units * self._model.unit_tokens)
        if given < smallest:
            raise ConfigError(
                f"system {system.name} has memory.tokens {given}, and its memory holds {smallest} "
                f"tokens of these engines at least: set memory.tokens to {smallest} or more"
            )

    def automatic(self, with_host: bool) -> Budget:
        """Both budgets in whole MB. Raises MemoryBudgetError for a long-term memory that the share
        does not hold."""
        if self._keeps_window_only:
            return Budget(min(self._least_mb(0), self._whole(self._device_share)), 0)
        if self._system.long_term:
            return self._automatic_long_term()
        if with_host:
            return self._automatic_tiers()
        return Budget(self._whole(self._device_share, self._least_mb(0) + self._history_mb), 0)

    def _automatic_tiers(self) -> Budget:
        """Of a system that moves pages from the device to the host."""
        share = self._device_share
        host_limit = self._host_share if self._shared else min(self._host_share, MAX_PINNED_MB)
        if pages_in(host_limit, self.bytes_of_page) < self._unit_pages:
            host_limit = 0  # no unit fits
        whole, reduced = self._least_mb(host_limit), self._least_mb(host_limit, reduced=True)
        limit = share
        if self._shared:
            limit = min(max(share * DEVICE_PART, whole), share * MAX_DEVICE_PART)
            limit = min(max(limit, reduced), share)
        device = self._whole(limit, whole + self._history_mb * DEVICE_PART)
        left = share - device if self._shared else host_limit
        host = math.floor(min(left, self._history_mb * MAX_DEVICE_PART))
        holds_chunk = pages_in(host, self.bytes_of_page) >= self._chunk_units * self._unit_pages
        return Budget(device, host if holds_chunk else 0)

    def _automatic_long_term(self) -> Budget:
        """Of a system whose device tier holds the recent window only."""
        share, history, least_host = self._host_share, self._history_mb, self._least_host_mb
        device = self._least_mb(max(min(share, history), least_host))
        host = math.floor(min(share - device * self._shared, max(history, least_host)))
        if host >= least_host:
            return Budget(device, host)
        host = math.ceil(least_host)
        device = self._least_mb(host)
        if device * self._shared + host <= share:
            return Budget(device, host)
        raise MemoryBudgetError(
            f"system {self._system.name} needs --memory {device}MB --host-memory {host}MB, and "
            f"{share:.0f} MB is the share of each of {self._sessions} sessions: give both options"
        )

    def limited(self, device_mb: float, host_mb: float) -> tuple[System, str]:
        """The system, reading what fits, and what it gives up. Raises MemoryBudgetError."""
        system, model = self._system, self._model
        pages, least = pages_in(device_mb, self.bytes_of_page), self._least(host_mb)
        most, fewest = units_read(system, model)
        if least.total <= pages or most is None or system.long_term:
            return system, ""
        if least.least > pages:
            raise too_small(least, self.bytes_of_page, model, system, device_mb)
        units = (pages - least.total + least.recalled) // self._unit_pages
        of_chunk = chunk_units(system, model)
        retrieval = system.retrieval.limited(max(units, fewest), of_chunk)
        fewer = retrieval.max_units(of_chunk)
        return (
            system.with_(retrieval=retrieval),
            f"with {device_mb:g} MB, questions of system {system.name} read at most {fewer} units "
            f"instead of {most}: --memory {self._least_mb(host_mb)}MB would hold all",
        )

    def long_term(self, host_mb: float) -> LongTermSize | None:
        policy = self._system.long_term
        return long_term_size(policy, self._model, host_mb, self._dtype) if policy else None

    def units_held(self, plan: MemoryPlan, host_mb: float) -> float | None:
        """Temporal units, nothing dropped, that are remembered; None: long-term memory decides."""
        system = self._system
        if system.long_term:
            return None
        if self._keeps_window_only:
            return (system.ingest.window or 0) * self._chunk_units + system.ingest.deferred_units
        return (plan.stream - self._least(host_mb).fixed + plan.host) / self._unit_pages

    @property
    def _keeps_window_only(self) -> bool:
        return self._system.ingest.slides or not self._system.ingest.prefills

    @property
    def _chunk_units(self) -> int:
        return chunk_units(self._system, self._model)

    @property
    def _unit_pages(self) -> int:
        return unit_pages(self._model)

    @property
    def _history_mb(self) -> float:
        """Of `memory.tokens`, or of `memory.hours`, nothing dropped."""
        system, model = self._system, self._model
        if (tokens := system.memory.tokens) is not None:
            # one chunk is there in any case
            units = max(tokens / model.unit_tokens - self._chunk_units, 0)
        else:
            units = system.memory.hours * 3600 * self._rate
        return units * self._unit_pages * self.bytes_of_page / 1e6

    @property
    def _least_host_mb(self) -> float:
        """Of the long-term memory."""
        try:
            self.long_term(0)
        except HostBudgetError as error:
            return error.smallest_mb
        return 0

    def _least(self, host_mb: float) -> LeastPages:
        long_term = self.long_term(host_mb)
        host = 0 if long_term else host_tier_pages(host_mb, self.bytes_of_page, self._model)
        return LeastPages.of(self._model, self._system, long_term, self._prompt_tokens, host)

    def _least_mb(self, host_mb: float, reduced: bool = False) -> int:
        """The smallest device budget. reduced: where questions read as little as they can."""
        least = self._least(host_mb)
        pages = least.least if reduced else least.total
        return math.ceil(pages * self.bytes_of_page / 1e6)

    @staticmethod
    def _whole(*limits: float) -> int:
        """The lowest limit in whole MB, at least 1."""
        return max(math.floor(min(limits)), 1)
