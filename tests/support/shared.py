"""What a test run makes once, for all processes that its tests run in."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOLDER = "VICORT_TEST_FOLDER"  # set by conftest.py; removed when the run ends


def shared_folder() -> Path:
    return Path(os.environ[FOLDER])


def once(name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder of that name in the shared folder. The first process that asks makes it,
    others wait; what a failed `make` left is removed before the next try."""
    target, made = shared_folder() / name, shared_folder() / f"{name}.made"
    with (shared_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            make(target)
            made.touch()
    return target
