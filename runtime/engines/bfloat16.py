"""What bfloat16 engines cost on a CPU without instructions for bfloat16."""

from __future__ import annotations

from pathlib import Path

FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 in /proc/cpuinfo, and of Arm


def computes_in_float32(
    backend: str | None, precision: str | None, cpuinfo: Path = Path("/proc/cpuinfo")
) -> bool:
    """Whether these engines run in float32 here, although they are bfloat16. False where the
    system does not say which instructions there are."""
    if precision != "bf16" or backend == "tensorrt":
        return False
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool({"flags", "Features"} & words) and not FEATURES & words


COST = (
    "this CPU has no bfloat16 instructions: the engines compute in float32, which is slower, and "
    "hold weights in twice and pages in several times the memory: a smaller --memory helps"
)
