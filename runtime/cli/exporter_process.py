"""Questions to `vicort.export`, which the runtime does not import: asked in a child process."""

from __future__ import annotations

import subprocess
import sys

from vicort.runtime.child_command import run_child
from vicort.runtime.errors import EngineError


def ask_exporter(module: str, *arguments: str) -> str:
    """What `python -m vicort.export.<module>` prints, without the last line break.

    Raises EngineError with the last line of its stderr if it fails.
    """
    done = run_child(
        # -P: not from a folder `vicort` that lies where the user is
        [sys.executable, "-P", "-m", f"vicort.export.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(reason)
    return done.stdout.removesuffix("\n")
