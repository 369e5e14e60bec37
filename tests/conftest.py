"""What several rooms' tests share: the embedded model's engine sets, built once a run by
`vicort-build` itself."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from support.scheduling import scheduling_kept

settings.register_profile("vicort", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("vicort")


@pytest.fixture(autouse=True)
def scheduling():
    """Tests that write AV1 leave no realtime process behind, in which all that follows would hold
    up the rest of the machine."""
    with scheduling_kept():
        yield


@pytest.fixture(scope="session")
def build_tiny(tmp_path_factory):
    """Folder of the embedded model's engine set for a backend, built on first use, by one of the
    processes that tests run in."""
    root = tmp_path_factory.getbasetemp()
    engines = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "engines"
    engines.mkdir(exist_ok=True)

    def build(backend: str = "openvino") -> Path:
        folder = engines / f"tiny-fp32-{backend}"
        with (engines / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                command = [
                    sys.executable,
                    "-m",
                    "vicort.export.build",
                    "tiny",
                    "--backend",
                    backend,
                    "--out",
                    str(folder),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
        return folder

    return build


@pytest.fixture(scope="session")
def tiny_engines(build_tiny) -> Path:
    return build_tiny()
