"""The control groups of this process, whose limits hold for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of the process's groups and of those around them that have a controller (`cpu`,
    `memory`), and whether they are of version 1 of cgroups. root: where `proc` and `sys` are."""
    for line in read_or_empty(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            yield folder, bool(controllers)
            if folder == mount:
                break


def read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
