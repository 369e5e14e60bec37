"""The C library and programs against it, compiled strictly, once in a test run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from support.shared import once

ROOT = Path(__file__).parents[2]
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread", "-D_GNU_SOURCE")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
# Leaks are not told apart from what Python keeps; with malloc, Python's buffers are watched too.
SANITIZED = {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
LANGUAGES = {".c": ("CC", "cc", "-std=c11"), ".cpp": ("CXX", "c++", "-std=c++17")}


def compiler(suffix: str) -> list[str]:
    """The command for sources of this kind; skips the test where there is none."""
    variable, usual, _ = LANGUAGES[suffix]
    command = os.environ.get(variable, usual).split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"no compiler {command[0]}")
    return command


def check_sanitizers() -> None:
    """Skips the test where the compiler has none."""
    probe = [*compiler(".c"), *SANITIZERS, "-x", "c", "-", "-o", "/dev/null"]
    if subprocess.run(probe, input=b"int main(void){return 0;}", check=False).returncode:
        pytest.skip("the compiler has no sanitizers")


@functools.cache
def library(sanitized: bool = False) -> Path:
    """What `make capi` makes, in a folder of the tests. sanitized: its hand-written C is compiled
    with the address sanitizer and that of undefined behaviour."""
    compiler(".c")

    def make(prefix: Path) -> None:
        command = [sys.executable, str(ROOT / "capi" / "build.py"), "--prefix", str(prefix)]
        flags = os.environ | {"CFLAGS": " ".join(["-Werror", *(SANITIZERS if sanitized else ())])}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=flags)
        if "no libpython" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr

    return once("capi-sanitized" if sanitized else "capi", make)


@functools.cache
def program(name: str, sanitized: bool = False) -> Path:
    """A source of tests/capi, compiled and linked."""
    source = ROOT / "tests" / "capi" / name
    prefix = library(sanitized)
    search = [f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}"]
    command = [*compiler(source.suffix), LANGUAGES[source.suffix][2], *STRICT, str(source)]
    command += SANITIZERS if sanitized else ()

    def make(target: Path) -> None:
        subprocess.run([*command, "-o", str(target), *search, "-lvicort", "-ldl"], check=True)

    return once(f"program-{source.stem}{'-sanitized' if sanitized else ''}", make)


def run(
    name: str,
    *arguments: object,
    timeout: float = 120,
    sanitized: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """What a program prints; it must end well and say nothing on stderr. environment: variables
    beside those of this process."""
    command = [str(program(name, sanitized)), *(str(argument) for argument in arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | (SANITIZED if sanitized else {}) | dict(environment),
    )
    assert (done.returncode, done.stderr) == (0, ""), (
        f"{name} ended with {done.returncode}: {done.stderr}"
    )
    return done.stdout
