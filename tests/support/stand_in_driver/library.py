"""The stand-in for `libcuda.so.1`: compiled once in a test run."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import zlib
from pathlib import Path

import pytest
from support.c_programs import compiler
from support.shared import once
from support.stand_in_driver.in_process import SONAME

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
HEADER = Path(__file__).parent / "driver.h"
STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


@functools.cache
def driver_folder() -> Path:
    """The folder of the library, for LD_LIBRARY_PATH. Skips the test where it cannot be
    compiled."""
    command = [*compiler(".c"), *STRICT, "-shared", "-fPIC", "-O1", "-isystem", str(headers())]

    def make(folder: Path) -> None:
        folder.mkdir()
        target = ("-Wl,-soname," + SONAME, "-o", str(folder / SONAME), "-ldl", "-pthread")
        subprocess.run([*command, *map(str, SOURCES), *target], check=True)

    sources = zlib.crc32(b"".join(path.read_bytes() for path in [*SOURCES, HEADER]))
    return once(f"stand-in-driver-{sources:08x}", make)


def headers() -> Path:
    """CUDA's headers, which Triton brings along."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        pytest.skip("no cuda.h: Triton, which brings it along, is not installed")
    return Path(triton.origin).parent / "backends" / "nvidia" / "include"
