"""The embedded model's engine sets for CPUs, built once in a test run by `vicort-build` itself."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from support.shared import once


@functools.cache
def tiny_set(backend: str = "openvino") -> Path:
    make = _build if backend == "openvino" else _copy_for_onnxruntime
    return once(f"tiny-fp32-{backend}", make)


def _build(folder: Path) -> None:
    command = [sys.executable, "-m", "vicort.export.build", "tiny"]
    command += ["--backend", "openvino", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _copy_for_onnxruntime(folder: Path) -> None:
    from support.engine_sets import copy_for  # late: it takes torch

    from vicort.export.checkpoint import TINY, resolve

    copy_for("onnxruntime", tiny_set(), folder, resolve(TINY), f"vicort-build {TINY}")
