"""Tools in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys


def python(*arguments: str, text: bool = False) -> subprocess.Popen:
    """A Python process that takes Ctrl-C, even where the tests themselves run in the background and
    ignore it."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=text,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
