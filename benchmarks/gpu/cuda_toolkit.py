"""Where CUDA's headers and its driver library are: AOTInductor compiles against the one and links
to the other, and neither need be where PyTorch looks.

`python -m vicort.benchmarks.gpu.cuda_toolkit` prints what is found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

USUAL = Path("/usr/local/cuda")
HEADER = Path("include", "cuda.h")
DRIVER = "libcuda.so.1"
LINKED_AS = "libcuda.so"  # what the linker looks for, given -lcuda


def roots() -> list[Path]:
    """Where a toolkit may be, the likeliest first: the environment, the usual place, beside nvcc,
    in CUDA's Python packages."""
    found = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found.append(USUAL)
    if nvcc := shutil.which("nvcc"):
        found.append(Path(nvcc).resolve().parents[1])
    for folder in sys.path:
        found += sorted(Path(folder, "nvidia").glob("cu[0-9]*"), reverse=True)
    return list(dict.fromkeys(found))


def home() -> Path | None:
    """The first root with CUDA's header, absolute."""
    return next((root.resolve() for root in roots() if (root / HEADER).is_file()), None)


def missing() -> str:
    """What to say where no root has it."""
    return (
        f"AOTInductor compiles against CUDA's {HEADER}, which is in none of "
        f"{', '.join(map(str, roots()))}: install the CUDA toolkit, or set CUDA_HOME"
    )


def driver() -> Path | None:
    """The driver's library: where this process loads libraries from, then where mounts put it."""
    return next((path for path in _drivers() if path.is_file()), None)


def _drivers() -> Iterator[Path]:
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        yield Path(folder, DRIVER)
    if ldconfig := shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin"):
        done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            name, _, path = line.strip().partition(" => ")
            if name.startswith(f"{DRIVER} ") and "x86-64" in name:
                yield Path(path)
    yield from (
        Path(folder, DRIVER) for folder in ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib")
    )


def prepare(folder: Path) -> None:
    """Points this process, and those that it starts, to the headers and to the driver's library,
    by absolute paths: PyTorch compiles in folders of its own. To be called before PyTorch is
    imported. folder: for a link to the driver."""
    if root := home():
        os.environ["CUDA_HOME"] = str(root)
    if library := driver():
        links = (folder / "driver").resolve()
        links.mkdir(parents=True, exist_ok=True)
        link = links / LINKED_AS
        if not (link.is_symlink() and link.readlink() == library.absolute()):
            link.unlink(missing_ok=True)
            link.symlink_to(library.absolute())
        others = os.environ.get("LIBRARY_PATH", "").split(":")
        others = [each for each in others if each and each != str(links)]
        os.environ["LIBRARY_PATH"] = ":".join([str(links), *others])


def main() -> int:
    print(f"CUDA toolkit: {home() or 'none; ' + missing()}")
    print(f"driver: {driver() or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
