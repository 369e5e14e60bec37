"""Threads keep the turn that they had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Give this thread the scheduling back that it had before.

    SVT-AV1, as root, makes its own threads and the one that opens it realtime ones (SCHED_FIFO,
    priority 99): all else on the machine then waits for them, and what they start is realtime too.
    """
    if not hasattr(os, "sched_setscheduler"):  # not on Linux
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if (os.sched_getscheduler(0), os.sched_getparam(0)) != (policy, parameters):
            os.sched_setscheduler(0, policy, parameters)
