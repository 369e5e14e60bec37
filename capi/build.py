"""`make capi`: builds libvicort.so, its headers and its CMake package for the current Python
environment."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

from vicort.runtime.policies.system import DEFAULT_SYSTEM

HERE = Path(__file__).resolve().parent
MODULE = "_vicort_capi"
EXPORTS = "{ global: vicort_*; local: *; };\n"
WARNINGS = (
    "-Wall",
    "-Wextra",
)  # for hand-written code; code from cffi is compiled without warnings


def declarations() -> str:
    """The types and constants of vicort.h, in the subset of C that cffi parses."""
    header = re.sub(r"/\*.*?\*/", "", (HERE / "vicort.h").read_text(), flags=re.DOTALL)
    kinds = r"typedef (?:enum|struct) \w+ (?:\{.*?\} )?\w+;|enum \{.*?\};|typedef int \(\*.*?\);"
    return "\n".join(re.findall(kinds, header, re.DOTALL))


def emit(target: Path) -> None:
    """Write the C source that embeds glue.py."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(declarations())
    ffi.embedding_api(
        re.sub(r"/\*.*?\*/", "", (HERE / "embedded.h").read_text(), flags=re.DOTALL).replace(
            "extern ", ""
        )
    )
    ffi.set_source(MODULE, '#include "vicort.h"')
    ffi.embedding_init_code((HERE / "glue.py").read_text())
    with redirect_stdout(io.StringIO()):  # it prints progress
        ffi.emit_c_code(str(target))


def compile_library(work: Path, target: Path) -> None:
    """Raises subprocess.CalledProcessError if the C compiler fails; it prints the reason itself."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    common = [
        "-O2",
        "-fPIC",
        "-pthread",
        "-fvisibility=default",
        f"-I{HERE}",
        f"-isystem{sysconfig.get_path('include')}",
    ]
    home = f'-DVICORT_BUILT_IN="{sys.prefix}"'
    system = f'-DVICORT_DEFAULT_SYSTEM="{DEFAULT_SYSTEM}"'
    subprocess.run(
        [
            *compiler,
            *common,
            "-std=gnu11",
            *WARNINGS,
            *flags,
            home,
            system,
            "-c",
            HERE / "vicort.c",
            "-o",
            work / "vicort.o",
        ],
        check=True,
    )
    subprocess.run(
        [*compiler, *common, "-w", "-c", work / "glue.c", "-o", work / "glue.o"], check=True
    )
    (work / "exports.map").write_text(EXPORTS)
    folder = sysconfig.get_config_var("LIBDIR")
    python = f"-lpython{sysconfig.get_config_var('LDVERSION')}"
    shared = [
        "-shared",
        "-pthread",
        "-Wl,-soname,libvicort.so",
        "-Wl,-z,nodelete",
        f"-Wl,--version-script={work / 'exports.map'}",
    ]
    link = [f"-L{folder}", f"-Wl,-rpath,{folder}", python, "-ldl"]
    objects = [work / "vicort.o", work / "glue.o"]
    subprocess.run([*compiler, *shared, "-o", target, *objects, *link], check=True)


def install(prefix: Path) -> None:
    """Install lib/, include/ and lib/cmake/vicort/ under `prefix`."""
    package = prefix / "lib" / "cmake" / "vicort"
    work = prefix / "work"
    for folder in (package, prefix / "include", work):
        folder.mkdir(parents=True, exist_ok=True)
    emit(work / "glue.c")
    compile_library(work, prefix / "lib" / "libvicort.so")
    for name in ("vicort.h", "vicort.hpp"):
        shutil.copy(HERE / name, prefix / "include")
    shutil.copy(HERE / "cmake" / "vicort-config.cmake", package)
    version = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
    template = (HERE / "cmake" / "vicort-config-version.cmake.in").read_text()
    (package / "vicort-config-version.cmake").write_text(template.replace("@VERSION@", version))


def problem() -> str | None:
    """Why the library cannot be built on this machine, in one line; None if it can."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return (
            f"{sys.executable} has no shared libpython: build Python with --enable-shared, or use "
            "the Python of a distribution"
        )
    compiler = shlex.split(os.environ.get("CC", "cc"))[0]
    if shutil.which(compiler) is None:
        return f"no C compiler {compiler}: install gcc or clang, or name one with CC=/path/to/cc"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prefix",
        type=Path,
        default=HERE.parent / "build" / "capi",
        help="installation folder (default: %(default)s)",
    )
    prefix = parser.parse_args().prefix.resolve()
    if reason := problem():
        print(f"make capi: {reason}", file=sys.stderr)
        return 2
    try:
        install(prefix)
    except subprocess.CalledProcessError as error:
        print(
            f"make capi: {error.cmd[0]} failed with the errors above; name another compiler with "
            "CC=/path/to/cc",
            file=sys.stderr,
        )
        return 2
    print(f"{prefix}/lib/libvicort.so, for the environment {sys.prefix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
