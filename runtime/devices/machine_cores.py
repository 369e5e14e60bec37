"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from vicort.runtime.devices.cgroups import control_groups, read_or_empty
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import is_whole, shown


def usable_cores(root: Path = Path("/")) -> int:
    """The cores of the process's affinity, or the lower limit of a cgroup of this process, rounded
    up.

    root: where `proc` and `sys` are.
    """
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min([affinity, *(max(1, math.ceil(limit)) for limit in _cgroup_limits(root))])


def checked_threads(threads: int | None) -> int:
    """`threads`, or all usable cores for None. Raises ConfigError for fewer than one or more than
    that."""
    cores = usable_cores()
    if threads is None:
        return cores
    if not is_whole(threads) or not 1 <= threads <= cores:
        raise ConfigError(
            f"{shown(threads)} threads: this process may use {cores}, give 1 to {cores}, or leave "
            "it out for all"
        )
    return threads


def _cgroup_limits(root: Path) -> list[float]:
    """CPU limits, in cores, of the process's cgroups."""
    quotas = [_quota(*group) for group in control_groups("cpu", root)]
    return [
        int(quota) / int(period)
        for quota, period in quotas
        if quota.isdigit() and period.isdigit() and int(quota) and int(period)
    ]


def _quota(folder: Path, first_version: bool) -> tuple[str, str]:
    """Microseconds of CPU time in each period, and the period; not numbers = no limit."""
    if first_version:
        quota, period = (
            read_or_empty(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period")
        )
        return quota.strip(), period.strip()
    quota, _, period = read_or_empty(folder / "cpu.max").strip().partition(" ")
    return quota, period
