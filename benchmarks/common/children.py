"""Work in a process of its own: its memory, its threads and its faults are its own too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from vicort.runtime.errors import VicortError

LONGEST_LINE = 300  # characters of a failure that are kept


class ChildFailed(VicortError):
    """Work failed in its process; the text says how, in one line."""


def in_child(work: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """What `work` returns, from a fresh interpreter.

    Raises ChildFailed with what it raised, or that it died, or that it took longer than `seconds`
    and was ended.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(there, work, arguments))
    child.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise ChildFailed(f"it took longer than {seconds:g} s and was ended")
        done, value = here.recv()
    except EOFError:
        child.join()
        raise ChildFailed(f"its process died with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        here.close()
    if not done:
        raise ChildFailed(value)
    return value


def one_line(error: BaseException) -> str:
    """A failure as a row of a table can hold it: what users are told, or the type and text of what
    nobody expected."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, VicortError) else f"{type(error).__name__}: {text}")[
        :LONGEST_LINE
    ]


def _run(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, work(*arguments)))
    except BaseException as error:  # noqa: BLE001 - told to whoever waits
        pipe.send((False, one_line(error)))
