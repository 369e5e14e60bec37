"""Starts a process that is no child of this one, for programs in C that embed vicort: they get no
SIGCHLD, and `wait` does not see it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Mapping, Sequence

CLONE_VM, CLONE_VFORK, WCLONE = 0x100, 0x4000, 0x80000000
STACK = 4 << 20  # bytes
START = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


def start_apart(
    command: Sequence[str], environment: Mapping[str, str], files: Sequence[int]
) -> Callable[[], object]:
    """Start a program with these files open, in a session of its own and as a child of process 1.
    Returns a function that has nothing to wait for. Raises OSError.

    A process in between, which shares this one's memory and ends without a signal, starts it.
    """
    failures: list[OSError] = []
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]

    def in_between(_: object) -> int:
        try:
            # not `setsid`, which some versions of glibc do not have: the server does it itself
            os.posix_spawn(command[0], list(command), environment, file_actions=actions)
        except OSError as error:
            failures.append(error)
        return 0

    inheritable = [file for file in files if not os.get_inheritable(file)]
    for file in inheritable:
        os.set_inheritable(file, True)
    try:
        _run_in_between(START(in_between))
    finally:
        for file in inheritable:
            os.set_inheritable(file, False)
    if failures:
        raise failures[0]
    return lambda: None


def _run_in_between(work: object) -> None:
    """Call `work` in a process that shares this one's memory, and wait for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.clone.argtypes = (START, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    stack = mmap.mmap(-1, STACK)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + STACK
    # no signal at its end: the lowest byte of the flags is 0
    child = libc.clone(work, top, CLONE_VM | CLONE_VFORK, None)
    if child < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    status = ctypes.c_int()
    if libc.waitpid(child, ctypes.byref(status), ctypes.c_int(WCLONE - (1 << 32))) != child:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if status.value:
        raise OSError(f"the process in between ended with status {status.value}")
