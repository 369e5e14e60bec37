"""How many cores a process may use."""

from __future__ import annotations

import os

import pytest

from vicort.runtime.devices import machine_cores
from vicort.runtime.devices.machine_cores import checked_threads, usable_cores
from vicort.runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def files(root, contents: dict[str, str]):
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("contents", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a/b\n"}, 8),
        ({"proc/self/cgroup": "no colons\n"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/d\n2:memory:/m\n",
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/m/cpu.cfs_quota_us": "100000\n",  # of other processes
                "sys/fs/cgroup/cpu/m/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/d\n",
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_the_lowest_of_affinity_and_the_limits_of_cgroups(contents, cores, tmp_path):
    assert usable_cores(files(tmp_path, contents)) == cores


@pytest.mark.parametrize("threads", [1, 8])
def test_threads_that_the_process_may_use(threads, monkeypatch):
    monkeypatch.setattr(machine_cores, "usable_cores", lambda: 8)
    assert checked_threads(threads) == threads
    assert checked_threads(None) == 8


@pytest.mark.parametrize("threads", [-1, 0, 9])
def test_other_numbers_are_refused_with_those_that_are_allowed(threads, monkeypatch):
    monkeypatch.setattr(machine_cores, "usable_cores", lambda: 8)
    with pytest.raises(
        ConfigError, match=f"{threads} threads: this process may use 8, give 1 to 8"
    ):
        checked_threads(threads)
