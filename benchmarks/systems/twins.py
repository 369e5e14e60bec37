"""Equal memory: the store size of all systems, and the twin of a system: the policy `uniform` that
reads as many tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.policies.retrieval import EvenUnits
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.session import Session

BASELINES = ("full-history", "simplestream", "uniform")  # without a twin
TWIN = "uniform = "  # prefix of a twin's name, before its system's name
# MB of the store on the device if there is a host tier; doubled until the system's window fits
DEVICE_SHARE_MB = 2.0
REFERENCE_MB = 1024.0
PROBE_MB = 64.0  # a device budget that holds one chunk of any system


def units_read(tokens: float, unit_tokens: int) -> int:
    """Whole units that hold at least `tokens` tokens; even spacing needs a first and a last one."""
    return max(2, math.ceil(tokens / unit_tokens))


def twin_of(system: System, tokens: float, unit_tokens: int) -> System:
    """`uniform` with the store of `system`, reading at least `tokens` tokens a question as evenly
    spaced whole units."""
    uniform = load_system("uniform")
    return uniform.with_(
        name=TWIN + system.name, retrieval=EvenUnits(units=units_read(tokens, unit_tokens))
    )


def with_store(engines: EngineSet, system: System, store_mb: float) -> System:
    """The system with `store_mb` of stream pages in both tiers; pages for questions come on top.

    A system with overflow policy `refuse` gets more: it is the reference.
    """
    if system.overflow.refuses:
        return system.with_(memory={"device_mb": REFERENCE_MB})
    for device_mb, host_mb in _splits(system, store_mb):
        probe_mb = PROBE_MB + device_mb
        probe = system.with_(memory={"device_mb": probe_mb, "host_mb": host_mb})
        own_mb = probe_mb - stored_mb(engines, probe)  # pages of questions and spare pages
        fitting = probe.with_(memory={"device_mb": own_mb + device_mb})
        try:
            stored_mb(engines, fitting)
        except MemoryBudgetError:
            continue
        return fitting
    raise MemoryBudgetError(
        f"a store of {store_mb:g} MB is too small for one chunk of system {system.name}: raise "
        "store_mb in settings.py"
    )


def stored_mb(engines: EngineSet, system: System) -> float:
    """MB of pages of the stream that its device tier can hold. Raises MemoryBudgetError if it does
    not hold one chunk."""
    with Session(engines, system, overlap=False) as session:
        memory = session.inspect().memory
        return (
            memory.tiers.stream_slots.count
            * (memory.pool.data[:1].nbytes + memory.pool.cell_positions[:1].nbytes)
            / 1e6
        )


def _splits(system: System, store_mb: float) -> Iterator[tuple[float, float]]:
    """Device and host parts of the store, the smallest device part first."""
    if system.memory.host_mb == 0:
        yield store_mb, 0.0
        return
    device_mb = DEVICE_SHARE_MB
    while device_mb < store_mb:
        yield device_mb, store_mb - device_mb
        device_mb *= 2
