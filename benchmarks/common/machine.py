"""The machine that a benchmark ran on, and its ceilings: matrix product and memory copy rates."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.spread import seconds_of, spread
from vicort.runtime.telemetry import without_telemetry

LIBRARIES = (
    "numpy",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "nvidia-dali-cuda130",
    "av",
    "tokenizers",
    "vicort",
)
MATRIX_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)


def conditions() -> dict[str, Any]:
    """The conditions of a measurement."""
    info = _cpu_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        **now(),
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model": f"{info.get('cpu family', '?')}/{info.get('model', '?')}",
        "cores": len(os.sched_getaffinity(0)),
        "matrix_flags": [flag for flag in MATRIX_FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := version_of(name))},
    }


def version_of(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def now() -> dict[str, Any]:
    """When, and how busy the machine was before."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # over the last minute: processes that ran or waited for a core
        "load_average": round(os.getloadavg()[0], 2),
    }


def ceilings(
    size: int, copy_mb: int, repeats: int, shapes: dict[str, tuple[int, int, int]]
) -> dict[str, Any]:
    """GFLOP/s of matrix products of size x size, and of the models' own `shapes` (m, k, n); GB/s of
    a memory copy (read + write)."""
    result: dict[str, Any] = {
        "size": size,
        "repeats": repeats,
        "torch": {},
        "openvino": {},
        "torch_model_shapes": {},
    }
    for threads in (1, 2):
        for precision in ("fp32", "bf16"):
            key = f"{precision} {threads}t"
            result["torch"][key] = _rate(
                _torch_product(size, size, size, precision, threads), size**3, repeats
            )
            result["openvino"][key] = _rate(
                _openvino_product(size, precision, threads), size**3, repeats
            )
    for name, (m, k, n) in shapes.items():
        for precision in ("fp32", "bf16"):
            work = _torch_product(m, k, n, precision, 1)
            result["torch_model_shapes"][f"{name} {m}x{k}x{n} {precision} 1t"] = _rate(
                work, m * k * n, repeats
            )
    result["copy_gb_s"] = _copy_rate(copy_mb, repeats)
    return result


def _rate(
    work: Callable[[], Any], products: int, repeats: int, min_seconds: float = 0.02
) -> dict[str, float]:
    """GFLOP/s, two operations a product; short work is repeated until a measurement lasts
    `min_seconds` seconds."""
    times = max(1, int(min_seconds / min(seconds_of(work, 2, 2))))

    def batch() -> None:
        for _ in range(times):
            work()

    return spread([2 * products * times / 1e9 / s for s in seconds_of(batch, 1, repeats)], 2)


def _torch_product(m: int, k: int, n: int, precision: str, threads: int) -> Callable[[], Any]:
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a = torch.rand(m, k).to(dtype)
    b = torch.rand(n, k).to(dtype)
    out = torch.empty(m, n, dtype=dtype)

    def work() -> None:
        torch.set_num_threads(threads)
        torch.mm(a, b.T, out=out)

    return work


def _openvino_product(size: int, precision: str, threads: int) -> Callable[[], Any]:
    with without_telemetry():
        import openvino
        from openvino import opset13 as ops

    a = ops.parameter([size, size], np.float32)
    b = ops.constant(np.random.default_rng(0).random((size, size), np.float32))
    model = openvino.Model([ops.matmul(a, b, False, True)], [a])
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ones((size, size), np.float32)))
    return request.infer


def _copy_rate(megabytes: int, repeats: int) -> dict[str, float]:
    source = np.ones(megabytes * 1_000_000, np.uint8)
    target = np.empty_like(source)
    times = seconds_of(lambda: np.copyto(target, source), 2, repeats)
    return spread([2 * megabytes / 1e3 / s for s in times], 2)


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
