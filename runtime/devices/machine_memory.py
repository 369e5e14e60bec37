"""How much memory the machine has for this process: what automatic budgets are shares of.

Totals only, never what is free at the moment, so that the same machine always gives the same.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from vicort.runtime.devices.cgroups import control_groups, read_or_empty

UNLIMITED = 1 << 60  # bytes: version 1 of cgroups writes a number near 2**63 for "no limit"


@dataclass(frozen=True)
class MachineMemory:
    """Bytes. device: of a GPU with memory of its own; None: the device uses the host's memory.

    engines: of the GPU, what engines take, once for all sessions. runs: what the runs of each
    session take there beside its pages.
    """

    host: int
    device: int | None = None
    engines: int = 0
    runs: int = 0

    def left_on_device(self, sessions: int) -> int:
        """Bytes of the GPU, or of the host where that is the device, for pages of all sessions."""
        total = self.host if self.device is None else self.device
        return max(0, total - self.engines - self.runs * sessions)


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or the lower limit of a cgroup of this process.

    root: where `proc` and `sys` are.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """Memory limits of the process's cgroups."""
    texts = [
        read_or_empty(folder / ("memory.limit_in_bytes" if first_version else "memory.max")).strip()
        for folder, first_version in control_groups("memory", root)
    ]
    return [int(text) for text in texts if text.isdigit() and int(text) < UNLIMITED]


def give_back_memory() -> None:
    """Let the C library give memory that it holds for later, which was freed, to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim:
        trim(0)
