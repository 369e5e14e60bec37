"""AOTInductor's engines by a CUDA build of PyTorch, over the stand-in for NVIDIA's driver: what is
compiled, launched, captured and replayed; not what is computed."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.stand_in_driver.child import StandInChild
from support.stand_in_driver.pytorch import compiled_sets
from support.stand_in_driver.pytorch.libraries import libraries

from vicort.benchmarks.gpu import cuda_toolkit

ROOT = Path(__file__).parents[3]
ROOMS = ("runtime", "export", "configs", "benchmarks", "engines")
INTERPRETER = "VICORT_CUDA_PYTHON"
WHERE = "import torch; print(torch.__path__[0])"
BUILD_SECONDS = 1200
ROUNDS, LANES = 20, 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get(INTERPRETER)
    if not found:
        pytest.skip(f"{INTERPRETER} names no Python that has a CUDA build of PyTorch")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(scope="module")
def cuda_child(python: str, folder: Path):
    """A process of that interpreter in which PyTorch has the stand-in for its GPU."""
    where = subprocess.run([python, "-c", WHERE], check=True, capture_output=True, text=True)
    stand_ins = libraries(Path(where.stdout.strip()))
    assert stand_ins, f"{INTERPRETER}={python}: its PyTorch is not built with CUDA"
    child = StandInChild(
        python,
        path=(),
        PYTHONPATH=f"{installed(folder)}:{ROOT / 'tests'}",  # also of those that it starts
        LD_PRELOAD=" ".join(map(str, stand_ins)),
        STAND_IN_DRIVER="lenient=1",
        TORCHINDUCTOR_CACHE_DIR=str(folder / "cache"),
        TORCHINDUCTOR_COMPILE_THREADS="1",  # its pool of processes may outlive the child
    )
    child.call(cuda_toolkit.prepare, folder)
    yield child
    child.close()


def installed(folder: Path) -> Path:
    """A folder in which another interpreter finds this repository as an installed package."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    site = folder / "site"
    for each in (site / "vicort", site / "vicort.dist-info"):
        each.mkdir(parents=True)
    for room in ROOMS:
        (site / "vicort" / room).symlink_to(ROOT / room)
    (site / "vicort.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vicort\nVersion: {version}\n"
    )
    return site


@pytest.fixture(scope="module")
def built(cuda_child: StandInChild, folder: Path) -> Path:
    named = cuda_child.call(compiled_sets.build, folder / "set", timeout=BUILD_SECONDS)
    assert all(named.values()), named
    return folder / "set"


def test_every_graph_is_launched_then_captured_and_replayed(cuda_child, built: Path) -> None:
    for name, found in cuda_child.call(compiled_sets.runs, built, timeout=300).items():
        plain, captured, replayed = found.pop("launches")
        assert plain > 0, name
        assert (captured, replayed) == (2 * plain, 0), name
        assert found == {"replays": (0, 0, 1), "graphs": 1, "refusals": [], "refused": []}, name


def test_what_captured_is_collected_while_others_capture(cuda_child, built: Path) -> None:
    """PyTorch aborts the process if a memory pool goes meanwhile."""
    captured = cuda_child.call(compiled_sets.rounds, built, ROUNDS, LANES, timeout=600)
    assert captured == [LANES] * ROUNDS
