"""The embedded model's engine sets for CPUs, built once in a test run by `vicort-build` itself."""

from __future__ import annotations

import functools
from pathlib import Path

from support.shared import once
from support.traces import keep_traces


@functools.cache
def tiny_set(backend: str = "openvino") -> Path:
    make = _build if backend == "openvino" else _copy_for_onnxruntime
    return once(f"tiny-fp32-{backend}", make)


def _build(folder: Path) -> None:
    import torch  # late: only who needs engines waits for it

    from vicort.export import build

    keep_traces()
    torch.set_num_threads(1)
    assert build.main(["tiny", "--backend", "openvino", "--out", str(folder)]) == 0


def _copy_for_onnxruntime(folder: Path) -> None:
    from support.engine_sets import copy_for  # late: it takes torch

    from vicort.export.checkpoint import TINY, resolve

    copy_for("onnxruntime", tiny_set(), folder, resolve(TINY), f"vicort-build {TINY}")
