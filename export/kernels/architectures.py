"""The GPUs that kernels can be compiled for."""

from __future__ import annotations

from collections.abc import Sequence

from vicort.runtime.errors import ConfigError

# architecture (90 for sm_90) -> KiB of shared memory that a block may have (CUDA C++ Programming
# Guide, compute capabilities)
SHARED_KIB = {
    80: 163,
    86: 99,
    87: 163,  # Orin
    89: 99,
    90: 227,
    100: 227,
    103: 227,
    110: 227,  # Thor
    120: 99,
    121: 99,  # Spark
}
ARCHITECTURES = tuple(SHARED_KIB)
# Compiled where no target is named: those that TensorRT for RTX builds plans for, and 90, on which
# it has not been tried.
DEFAULT = (80, 86, 89, 90, 120, 121)


def of_targets(targets: Sequence[str]) -> tuple[int, ...]:
    """("sm_86", "sm_120") as (86, 120); all of DEFAULT for none. Raises ConfigError for one that
    kernels cannot be compiled for."""
    known = {f"sm_{each}": each for each in ARCHITECTURES}
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"--target {target}: attention kernels are compiled for {', '.join(known)}: name "
                "one of these, or build with --no-plugin"
            )
    return tuple(known[target] for target in targets) or DEFAULT
