"""A process on the stand-in driver, which the tests' own process must not load."""

from __future__ import annotations

import gc
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from support.processes import kill

SERVE = (
    "import pickle, sys; sys.path[:0] = pickle.load(sys.stdin.buffer);"
    "from support.stand_in_driver.child import serve; serve()"
)
R = TypeVar("R")


def environment() -> dict[str, str]:
    """Variables with which a process gets the stand-in for its driver."""
    from support.stand_in_driver.library import driver_folder  # late: the child needs no compiler

    folders = [str(driver_folder()), os.environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


class StandInChild:
    """Calls functions, one after another, in one process on the stand-in."""

    def __init__(
        self, python: str = sys.executable, path: Sequence[str] = sys.path, **variables: str
    ) -> None:
        """python: the interpreter; path: where it looks for modules first; variables: of its
        environment."""
        self._python, self._path, self._variables = python, list(path), variables
        self._child = self._start()

    def _start(self) -> subprocess.Popen:
        child = subprocess.Popen(
            [self._python, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment() | self._variables,
        )
        assert child.stdin
        pickle.dump(self._path, child.stdin)
        return child

    def call(
        self, function: Callable[..., R], *args: Any, timeout: float = 60, **options: Any
    ) -> R:
        """What a function of a module returns there, or raises. The process is killed if it takes
        longer than `timeout` seconds, or dies."""
        assert self._child.stdin
        assert self._child.stdout
        try:
            pickle.dump((function, args, options), self._child.stdin)
            self._child.stdin.flush()
            if not select.select([self._child.stdout], [], [], timeout)[0]:
                raise TimeoutError(f"{function.__name__}{args} took more than {timeout} seconds")
            is_value, result = pickle.load(self._child.stdout)
        except BaseException:  # the next reply would be that of this call
            self.close()
            self._child = self._start()
            raise
        if is_value:
            return result
        raise result

    def close(self) -> None:
        kill(self._child)


def serve() -> None:
    """The child's loop."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints does not get among the replies
    while True:
        try:
            function, args, options = pickle.load(requests)
        except EOFError:
            return
        if not gc.get_freeze_count():
            gc.freeze()  # what was imported is no garbage, and is not looked at again
        try:
            reply = pickle.dumps((True, function(*args, **options)))
        except Exception as error:  # noqa: BLE001 -- the parent raises it
            reply = pickle.dumps((False, _portable(error)))
        replies.write(reply)
        replies.flush()


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 -- some exceptions cannot be made from their text alone
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
