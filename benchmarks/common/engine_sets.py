"""The engine sets that the benchmarks run, built by `vicort-build` where they are not there yet."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vicort.benchmarks.common.checkpoints import SIDE as MEDIUM_SIDE
from vicort.benchmarks.common.checkpoints import write_medium
from vicort.benchmarks.common.workload import CHUNK_FRAMES
from vicort.export.tiny.model import CHECKPOINT as TINY
from vicort.export.tiny.model import SIDE as TINY_SIDE
from vicort.runtime.child_command import run_child
from vicort.runtime.errors import EngineError

KINDS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))  # backend, precision


@dataclass(frozen=True)
class Model:
    """A model to measure with: its checkpoint and the frames it takes."""

    name: str
    source: str  # MODEL of vicort-build
    checkpoint: Path
    side: int  # pixels, frames are square

    def engines(self, cache: Path, backend: str, precision: str) -> Path:
        """Folder of its engine set in `cache`, which is built there if need be."""
        folder = cache / f"{self.name}-{precision}-{backend}"
        command = [
            *(sys.executable, "-m", "vicort.export.build", self.source, "--out", folder),
            *("--backend", backend, "--precision", precision),
            *("--chunk-frames", CHUNK_FRAMES, "--image-size", f"{self.side}x{self.side}"),
        ]
        done = run_child(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if done.returncode:
            raise EngineError(
                f"building {folder} failed: "
                f"{(done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]}"
            )
        return folder


def tiny_model() -> Model:
    return Model("tiny", "tiny", TINY, TINY_SIDE)


def speaking_model() -> Model:
    """The tiny model with the adapter that decides when to speak without a question."""
    return Model("tiny-live", "tiny-live", TINY, TINY_SIDE)


def medium_model(cache: Path) -> Model:
    """About 100 million parameters; its checkpoint is written to `cache` if need be."""
    checkpoint = write_medium(cache / "medium-checkpoint")
    return Model("medium", str(checkpoint), checkpoint, MEDIUM_SIDE)
