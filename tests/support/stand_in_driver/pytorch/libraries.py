"""Stand-ins for CUDA's libraries that a build of PyTorch links to: CUDART over the stand-in
driver, and cuBLAS, which computes nothing."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

from support.c_programs import compiler
from support.shared import once
from support.stand_in_driver.library import SONAME, STRICT, driver_folder, headers

FOLDER = Path(__file__).parent
NOT_SUPPORTED = 801  # cudaErrorNotSupported
# By the library's name: the source of what it does, and what its other functions return.
SOURCES = {
    "libcudart": ("cudart.c", NOT_SUPPORTED),
    "libcublas": ("cublas.c", 0),
    "libcublasLt": ("cublas.c", 0),
}


@functools.cache
def libraries(torch: Path) -> list[Path]:
    """Those for the PyTorch in that folder, for LD_PRELOAD. Skips the test where they cannot be
    compiled."""
    compiler(".c")
    wanted = imported(torch)

    def make(folder: Path) -> None:
        folder.mkdir()
        for file, functions in wanted.items():
            compile_stand_in(folder / file, functions)

    folder = once("stand-in-cuda-libraries", make)
    return [folder / file for file in wanted]


def imported(torch: Path) -> dict[str, set[str]]:
    """The functions that PyTorch takes from each library, by the library's file name."""
    found: dict[str, set[str]] = {}
    for path in sorted((torch / "lib").glob("*.so")):
        for function, file in symbols(path, "--dynamic", "--undefined-only"):
            if file and file.partition(".")[0] in SOURCES:
                found.setdefault(file, set()).add(function)
    return found


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """Names, and their versions or ""."""
    command = ["nm", "--format=posix", *options, str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^(\w+)(?:@@?(\S+))? ", listed, re.MULTILINE)


def compile_stand_in(target: Path, functions: set[str]) -> None:
    """Compiles a library that has all of these functions. They have the library's file name for
    their version, as NVIDIA's have."""
    source, result = SOURCES[target.name.partition(".")[0]]
    command = [*compiler(".c"), *STRICT, "-fPIC", "-O1", "-isystem", str(headers())]
    written, rest = target.with_suffix(".o"), target.with_suffix(".c")
    subprocess.run([*command, "-c", "-o", str(written), str(FOLDER / source)], check=True)
    missing = functions - {name for name, _ in symbols(written, "--defined-only")}
    lines = [f"EXPORTED int {name}(void) {{ return {result}; }}" for name in sorted(missing)]
    exported = '#define EXPORTED __attribute__((visibility("default")))'
    rest.write_text("\n".join([exported, *lines, ""]))
    versions = target.with_suffix(".map")
    versions.write_text(f"{target.name} {{ global: *; }};\n")
    links = [f"-Wl,-soname,{target.name}", f"-Wl,--version-script={versions}"]
    driver = [f"-L{driver_folder()}", f"-l:{SONAME}"]
    objects = ["-shared", "-o", str(target), str(written), str(rest)]
    subprocess.run([*command, *objects, *links, *driver], check=True)
