"""Commands of vicort that another command starts and waits for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

END_SECONDS = 1.0  # for a child to remove what it has half written


def run_child(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, but that the child is ended by SIGTERM where this process is interrupted
    meanwhile, and killed only if it does not end."""
    with subprocess.Popen(command, text=True, **options) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            child.terminate()
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)
