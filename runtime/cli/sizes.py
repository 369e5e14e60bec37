"""Sizes as vicort-info shows them, and whether weights fit into a machine."""

from __future__ import annotations

from vicort.runtime.devices.machine_memory import MachineMemory

GB = 1_000_000_000
SPARE_GB = 1.5  # that a run takes besides weights and pages


def size_text(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.1f} MB"


def machine_text(machine: MachineMemory) -> str:
    host = f"{machine.host / GB:.1f} GB of memory"
    return host if machine.device is None else f"a GPU with {machine.device / GB:.1f} GB, {host}"


def lacking_memory(weights: int, in_float32: bool, host: int) -> str:
    """Why a machine with `host` bytes of memory is too small for so many bytes of weights, which
    take twice as many where they are bfloat16 and computed in float32; "" if it is not."""
    needed = weights * (2 if in_float32 else 1) + SPARE_GB * GB
    if needed <= host:
        return ""
    return (
        f"weights{' in float32' * in_float32} and a margin of {SPARE_GB:g} GB are "
        f"{needed / GB:.1f} GB, this machine has {host / GB:.1f} GB"
    )
