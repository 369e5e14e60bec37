"""What several rooms' tests share: the embedded model's engine sets, built once a run by
`vicort-build` itself."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from support.scheduling import scheduling_kept
from support.shared import FOLDER, once

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
settings.register_profile("vicort", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("vicort")


def pytest_configure(config):
    """Make the folder that this process shares with its xdist workers, which start later and share
    the cores too."""
    if FOLDER not in os.environ:
        os.environ |= dict.fromkeys(ONE_THREAD, "1")
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="vicort-test-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True))


@pytest.fixture(autouse=True)
def scheduling():
    """Tests that write AV1 leave no realtime process behind, in which all that follows would hold
    up the rest of the machine."""
    with scheduling_kept():
        yield


@pytest.fixture(scope="session")
def build_tiny():
    """Folder of the embedded model's engine set for a CPU backend, built on first use."""

    def build(backend: str = "openvino") -> Path:
        name = f"tiny-fp32-{backend}"
        return once(name, _build if backend == "openvino" else _copy_for_onnxruntime)

    def _build(folder: Path) -> None:
        command = [sys.executable, "-m", "vicort.export.build", "tiny"]
        command += ["--backend", "openvino", "--out", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _copy_for_onnxruntime(folder: Path) -> None:
        from support.engine_sets import copy_for  # late: it takes torch

        from vicort.export.checkpoint import TINY, resolve

        copy_for("onnxruntime", build(), folder, resolve(TINY), f"vicort-build {TINY}")

    return build


@pytest.fixture(scope="session")
def tiny_engines(build_tiny) -> Path:
    return build_tiny()
