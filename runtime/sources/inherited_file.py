"""Names of files that this process has open already: /dev/stdin, /dev/fd/N, /proc/self/fd/N."""

from __future__ import annotations

import os
import re

MOST_LINKS = 40  # that lead from one to the next, as in the kernel


def inherited_file(name: str) -> int | None:
    """The number of the open file that a path names, also through symbolic links; None = another
    path. Another process would take it for a file of its own."""
    own = re.compile(rf"/proc/{os.getpid()}(/task/\d+)?/fd")
    for _ in range(MOST_LINKS):
        folder, last = os.path.split(os.path.abspath(name))
        if last.isdecimal() and own.fullmatch(os.path.realpath(folder)):
            return int(last)
        try:
            name = os.path.join(folder, os.readlink(name))
        except (OSError, ValueError):  # no link
            return None
    return None
