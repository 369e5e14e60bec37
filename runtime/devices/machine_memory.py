"""How much memory the machine has for this process: what automatic budgets are shares of.

Totals only, never what is free at the moment, so that the same machine always gives the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # bytes: version 1 of cgroups writes a number near 2**63 for "no limit"


@dataclass(frozen=True)
class MachineMemory:
    """Bytes. device: of a GPU with memory of its own; None: the device uses the host's memory."""

    host: int
    device: int | None = None


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or the lower limit of a cgroup of this process.

    root: where `proc` and `sys` are.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """Memory limits of the process's cgroups and of those around them, in either version."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            text = _read(folder / name).strip()
            if text.isdigit() and int(text) < UNLIMITED:
                found.append(int(text))
            if folder == mount:
                break
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
