"""Tools in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress


def python(
    *arguments: str, text: bool = False, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """A Python process that takes Ctrl-C, even where the tests themselves run in the background and
    ignore it. environment: variables besides those of the tests."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=text,
        env=os.environ | (environment or {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def kill(child: subprocess.Popen) -> None:
    """End a process and close its pipes."""
    child.kill()
    child.wait(20)
    if child.stdout:
        child.stdout.close()
    if child.stdin:
        with suppress(BrokenPipeError):  # of what was not yet written
            child.stdin.close()
