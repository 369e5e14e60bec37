"""gpu-check with steps of a test instead of a GPU's, behind offline.sh: `python offline_check.py
WAY ARGUMENT...`."""

import os
import signal
import sys
import time

from support import gpu_steps

from vicort.benchmarks.gpu import check

STEPS = {name: check.Step("?", getattr(gpu_steps, name), expected=0) for name in gpu_steps.NAMES}


def main(way: str, *arguments: str) -> int:
    """way: how the check itself behaves: `well`, `stuck` or `dead`."""
    if way == "stuck":  # as in a driver's call that never returns, deaf to all but SIGKILL
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    if way == "dead":
        os.kill(os.getpid(), signal.SIGSEGV)
    check.STEPS = STEPS
    return check.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
