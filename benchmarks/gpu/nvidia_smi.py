"""What `nvidia-smi` says of the first GPU."""

from __future__ import annotations

import shutil
import subprocess

FIELDS = (
    "name,driver_version,vbios_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,"
    "power.limit,memory.total,temperature.gpu"
)


def nvidia_smi() -> dict[str, str] | str:
    """Clocks, driver and limits, or the reason why they are unknown."""
    if not shutil.which("nvidia-smi"):
        return "nvidia-smi is not installed"
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return "nvidia-smi gave no answer within 60 s"
    values = [value.strip() for value in done.stdout.strip().split(",")]
    names = FIELDS.split(",")
    return (
        dict(zip(names, values, strict=True))
        if len(values) == len(names)
        else (done.stderr or done.stdout).strip()[:200]
    )
