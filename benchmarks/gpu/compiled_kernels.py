"""Resources of the compiled GPU kernels: registers, shared memory, spills and bytes, for every
architecture.

`python -m vicort.benchmarks.gpu.compiled_kernels` prints it and writes
benchmarks/results/kernels.json; it fails if a kernel spills. It needs no GPU and measures no times.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vicort.benchmarks.common.machine import now
from vicort.export.kernels.compile import (
    ARCHITECTURES,
    Built,
    build,
    plan_tasks,
    ptxas_report,
    versions,
)
from vicort.export.onnx_function import rotary_frequencies
from vicort.runtime.kernels import Dtype, KernelSpec

RESULT = Path(__file__).parents[1] / "results" / "kernels.json"
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B": {
        "kv_heads": 2,
        "groups": 8,
        "head_dim": 128,
        "page_tokens": 16,
        "sections": (16, 24, 24),
    },
    "Qwen2.5-VL-7B": {
        "kv_heads": 4,
        "groups": 7,
        "head_dim": 128,
        "page_tokens": 16,
        "sections": (16, 24, 24),
    },
    "tiny": {"kv_heads": 2, "groups": 2, "head_dim": 32, "page_tokens": 4, "sections": (4, 6, 6)},
}
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
# KiB for a block (CUDA C++ Programming Guide, compute capabilities)
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
REGISTER_FILE = 65536  # 32-bit registers of a multiprocessor
COLUMNS = (
    "model",
    "dtype",
    "architecture",
    "kernel",
    "registers",
    "shared_bytes",
    "stack_bytes",
    "spill_stores",
    "spill_loads",
    "cubin_bytes",
)


def specs() -> Iterator[tuple[str, KernelSpec]]:
    for model, facts in MODELS.items():
        frequencies = tuple(rotary_frequencies(1e6, facts["head_dim"] // 2))
        for dtype in DTYPES:
            yield model, KernelSpec(dtype=dtype, frequencies=frequencies, **facts)


def measure(built: Built) -> dict[str, Any]:
    """One kernel's resources: bytes of stack and of spills a thread, as ptxas says; shared memory
    as launched."""
    said = ptxas_report(built)
    stack, stores, loads = (
        int(value)
        for value in _find(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said
        )
    )
    kernel = built.index
    constants = kernel.constants
    return {
        "architecture": f"sm_{kernel.architecture}",
        "kernel": " ".join(filter(None, (kernel.kernel, kernel.form))),
        "tile": [constants["BLOCK_M"], constants["BLOCK_N"]] if "BLOCK_M" in constants else None,
        "warps": kernel.warps,
        "registers": int(_find(r"Used (\d+) registers", said)[0]),
        "shared_bytes": kernel.shared_bytes,
        "stack_bytes": stack,
        "spill_stores": stores,
        "spill_loads": loads,
        "cubin_bytes": len(built.cubin),
    }


def faults(row: dict[str, Any]) -> list[str]:
    """Why a kernel would be slow or would not start."""
    limit = SHARED_LIMIT[int(row["architecture"][3:])] * 1024
    registers = row["registers"] * row["warps"] * 32
    wrong = (
        [f"spills {row['spill_stores']} bytes"] if row["spill_stores"] or row["spill_loads"] else []
    )
    wrong += (
        [f"takes {row['shared_bytes']} bytes of shared memory, {limit} are available"]
        if row["shared_bytes"] > limit
        else []
    )
    return wrong + (
        [f"takes {registers} registers, {REGISTER_FILE} are available"]
        if registers > REGISTER_FILE
        else []
    )


def report() -> dict[str, Any]:
    rows = []
    work = [
        (model, spec, architecture) for model, spec in specs() for architecture in ARCHITECTURES
    ]
    for model, spec, architecture in tqdm(work, desc="compiling", unit="set", disable=None):
        for built in build(spec, plan_tasks(spec, architecture)):
            rows.append({"model": model, "dtype": spec.dtype, **measure(built)})
    conditions = {
        "date": now()["date"],
        **versions(),
        "gpu": "none: compiled ahead of time, never run",
        "models": MODELS,
    }
    return {"conditions": conditions, "rows": rows}


def main() -> int:
    result = report()
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    widths = [max(len(name), *(len(str(row[name])) for row in result["rows"])) for name in COLUMNS]
    print("  ".join(name.ljust(width) for name, width in zip(COLUMNS, widths, strict=True)))
    for row in result["rows"]:
        print(
            "  ".join(
                str(row[name]).ljust(width) for name, width in zip(COLUMNS, widths, strict=True)
            )
        )
    wrong = [
        f"{row['model']} {row['dtype']} {row['kernel']} {row['architecture']}: {fault}"
        for row in result["rows"]
        for fault in faults(row)
    ]
    print("\n".join(wrong) if wrong else f"{len(result['rows'])} kernels, no spills")
    return 1 if wrong else 0


def _find(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"ptxas did not say {pattern!r}: {text}")
    return found.groups()


if __name__ == "__main__":
    sys.exit(main())
