"""Who takes part, and why one cannot on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.checkpoints import read_json
from vicort.runtime.devices.machine_memory import host_memory

FLOAT_BYTES = 4
DISK_GB = {"checkpoint": 7.5, "engines": 3.8, "genai": 2.8}  # of the 3B model
# GB beside the weights: activations, pages, libraries; 1 to 4.3 were measured with the 3B model
BESIDE_GB = 4.5


@dataclass(frozen=True)
class Contender:
    """One way of doing the job, in a process of its own: `work(job, folder, *more)`."""

    name: str
    work: Callable[..., dict[str, Any]]
    folder: Path
    kind: str  # of the folder: a key of DISK_GB
    how_to_make: str  # the folder
    packages: tuple[str, ...] = ()
    more: tuple[Any, ...] = ()
    weight_bytes: float = 1.0  # in memory, for each byte of weights in the folder

    def obstacle(self) -> str | None:
        """Why it cannot run, with what to do; None if it can."""
        if not self.folder.is_dir():
            needed, free = DISK_GB[self.kind], free_disk_gb(self.folder)
            short = f", and only {free:.1f} GB are free there" if free < needed else ""
            return (
                f"{self.folder} is missing (the 3B model's takes {needed} GB{short}): "
                f"{self.how_to_make}"
            )
        for package in self.packages:
            if find_spec(package) is None:
                return f"{package} is not installed: pip install {package.replace('_', '-')}"
        needed, free = self.gigabytes(), free_memory_gb()
        if free < needed:
            return f"it needs about {needed:.1f} GB of memory, and {free:.1f} GB are free"
        return None

    def gigabytes(self) -> float:
        """Memory that it needs, in GB of 1e9 bytes."""
        weights = sum(
            path.stat().st_size
            for path in self.folder.iterdir()
            if path.suffix in (".safetensors", ".bin")
        )
        return weights * self.weight_bytes / 1e9 + BESIDE_GB


def stored_bytes(checkpoint: Path) -> int:
    """Of a weight of this checkpoint, as its configuration has it; 2 where it says nothing."""
    path = checkpoint / "config.json"
    config = read_json(path) if path.is_file() else {}
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return FLOAT_BYTES if dtype == "float32" else 2


def free_memory_gb(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Memory that programs can still take, under the limit of this process's cgroup."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return min(int(lines["MemAvailable"].split()[0]) * 1024, host_memory()) / 1e9


def free_disk_gb(folder: Path) -> float:
    """Of the disk on which the folder would be."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free / 1e9


def vicort_contenders(folders: Sequence[Path]) -> list[Contender]:
    from vicort.benchmarks.real_size.vicort_clip import run_vicort
    from vicort.runtime.manifest import backend_of

    return [
        Contender(
            f"vicort, {backend_of(folder) or 'engines'} ({folder.name})",
            run_vicort,
            folder,
            "engines",
            "build it with `vicort-build CHECKPOINT --weights int4 --out DIR`, or name others "
            "with --engines",
        )
        for folder in folders
    ]


def genai_contender(folder: Path) -> Contender:
    from vicort.benchmarks.real_size.genai_clip import run_genai

    return Contender(
        "OpenVINO GenAI",
        run_genai,
        folder,
        "genai",
        "convert the checkpoint as benchmarks/README.md says, or name a folder with --genai-model",
        ("openvino_genai",),
    )
