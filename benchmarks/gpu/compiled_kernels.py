"""Resources of the compiled GPU kernels: registers, shared memory, spills, bytes, and instructions
in loops, for every architecture.

`python -m vicort.benchmarks.gpu.compiled_kernels` prints it and writes
benchmarks/results/kernels.json; it fails if a kernel spills. It needs no GPU and measures no times.
The file names the sources that it is of, by their hash; a test compares it with the tree.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from tqdm import tqdm
from triton import knobs

from vicort.benchmarks.common.machine import now
from vicort.export import kernels
from vicort.export.kernels.architectures import ARCHITECTURES, SHARED_KIB
from vicort.export.kernels.compile import (
    Built,
    build,
    plan_tasks,
    versions,
)
from vicort.export.kernels.compile_task import resources
from vicort.export.onnx_function import rotary_frequencies
from vicort.runtime.kernels import Dtype, KernelSpec

RESULT = Path(__file__).parents[1] / "results" / "kernels.json"
SOURCES = sorted(Path(kernels.__file__).parent.glob("*.py"))
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
# bfloat16 is what sets for GPUs are built in unless asked otherwise
COVERED: tuple[tuple[str, Dtype], ...] = tuple((model, "bfloat16") for model in MODELS)
REGISTER_FILE = 65536  # 32-bit registers of a multiprocessor
COLUMNS = (
    "model",
    "dtype",
    "architecture",
    "kernel",
    "registers",
    "shared_bytes",
    "stack_bytes",
    "cubin_bytes",
    "loops",
)
LEAST_LOOP = 50  # instructions: shorter ones only wait


def source_hash(files: Iterable[Path] = SOURCES) -> str:
    """Of the code of the kernels and of their compilation, without docstrings and comments."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode())
        digest.update("".join(_code(file.read_text())).encode())
    return digest.hexdigest()[:16]


def _code(text: str) -> Iterator[str]:
    """Its lines, but for docstrings, comments of a line of their own, and empty ones."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node):
            docstring = node.body[0]
            left_out |= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if number not in left_out and line.strip() and not line.lstrip().startswith("#"):
            yield line


def specs() -> Iterator[tuple[str, KernelSpec]]:
    for model, dtype in COVERED:
        facts = MODELS[model]
        frequencies = tuple(rotary_frequencies(1e6, facts["head_dim"] // 2))
        yield model, KernelSpec(dtype=dtype, frequencies=frequencies, **facts)


def measure(built: Built) -> dict[str, Any]:
    """One kernel's resources, of its cubin: bytes of stack a thread, shared memory as launched."""
    registers, stack = resources(built.cubin)
    kernel = built.index
    constants = kernel.constants
    return {
        "architecture": f"sm_{kernel.architecture}",
        "kernel": " ".join(filter(None, (kernel.kernel, kernel.form))),
        "tile": [constants["BLOCK_M"], constants["BLOCK_N"]] if "BLOCK_M" in constants else None,
        "warps": kernel.warps,
        "registers": registers,
        "shared_bytes": kernel.shared_bytes,
        "stack_bytes": stack,
        "cubin_bytes": len(built.cubin),
        "loops": loops(built.cubin),
    }


def loops(cubin: bytes) -> list[int]:
    """Instructions of a warp in one round of each innermost loop, in the order of the code: in
    attention over a tile of cached tokens, then over one of new tokens."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    count = 0
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            jump = re.search(r"BRA.*`\((\.L_\w+)\)", instruction[1])
            if jump and jump[1] in labels:
                found.append((labels[jump[1]], count))
            count += 1
    # code that is moved out of the way ends with a jump back, into a loop or before one
    within = [
        (first, last)
        for first, last in found
        if not any(
            (first <= start and end < last) or (start < first <= end < last) for start, end in found
        )
    ]
    return [last - first + 1 for first, last in within if last - first >= LEAST_LOOP]


def faults(row: dict[str, Any]) -> list[str]:
    """Why a kernel would be slow or would not start."""
    limit = SHARED_KIB[int(row["architecture"][3:])] * 1024
    registers = row["registers"] * row["warps"] * 32
    wrong = (
        [f"spills: a thread has {row['stack_bytes']} bytes of stack"] if row["stack_bytes"] else []
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
        "sources": source_hash(),
        **versions(),
        "gpu": "none: compiled ahead of time, never run",
        "models": MODELS,
    }
    return {"conditions": conditions, "rows": rows}


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
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


if __name__ == "__main__":
    sys.exit(main())
