"""What several rooms' tests share: the embedded model's engine sets, built once a run by `vicort-build` itself."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build_tiny(tmp_path_factory):
    """Folder of the embedded model's engine set for a backend, built on first use."""
    built: dict[str, Path] = {}

    def build(backend: str = "openvino") -> Path:
        if backend not in built:
            folder = tmp_path_factory.mktemp("engines") / f"tiny-fp32-{backend}"
            command = [sys.executable, "-m", "vicort.export.build", "tiny", "--backend", backend, "--out", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            built[backend] = folder
        return built[backend]

    return build


@pytest.fixture(scope="session")
def tiny_engines(build_tiny) -> Path:
    return build_tiny()
