"""How much memory there is: of the machine, and within the limits of cgroups."""

import os

import pytest

from vicort.runtime.devices.machine_memory import host_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NO_LIMIT = str(2**63 - 4096)  # what version 1 of cgroups writes for none


def machine(root, cgroup, **limits):
    """A file system whose process is in `cgroup`. limits: content of files below sys/fs/cgroup,
    their slashes written as two underscores."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("max", "memory.max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_a_machine_without_limits_has_what_it_has(tmp_path):
    assert host_memory(tmp_path) == PHYSICAL
    assert host_memory(machine(tmp_path, "0::/a\n", max="max", a__max="max")) == PHYSICAL


@pytest.mark.parametrize(
    ("limits", "bytes_"),
    [
        ({"a__b__max": "2000000", "a__max": "max"}, 2_000_000),
        ({"a__b__max": "2000000", "a__max": "1000000"}, 1_000_000),  # of a group around it
        ({"a__b__max": "max", "max": "3000000"}, 3_000_000),  # a container sees its group as /
        ({"a__b__max": str(PHYSICAL + 1)}, PHYSICAL),
    ],
)
def test_the_lowest_limit_of_version_2_counts(tmp_path, limits, bytes_):
    assert host_memory(machine(tmp_path, "0::/a/b\n", **limits)) == bytes_


def test_so_does_one_of_version_1(tmp_path):
    groups = "9:name=systemd:/x\n4:cpu,cpuacct:/x\n3:memory:/a\n0::/\n"
    root = machine(tmp_path, groups)
    for folder, text in (("memory", NO_LIMIT), ("memory/a", "5000000"), ("cpu,cpuacct/x", "7")):
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / folder / "memory.limit_in_bytes").write_text(text)
    assert host_memory(root) == 5_000_000


def test_this_machine_has_some():
    assert 1e8 < host_memory() <= PHYSICAL
