"""Work in a child process: its memory, threads and crashes do not touch this one."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from vicort.runtime.errors import VicortError

MAX_LINE = 1000  # characters of an error text that are kept


class ChildFailed(VicortError):
    """Work failed in its child process; the text says how, in one line."""

    def __init__(self, line: str, exit_code: int = VicortError.exit_code) -> None:
        """exit_code: that of the error which the work raised, if it was a VicortError."""
        super().__init__(line)
        self.exit_code = exit_code


def in_child(work: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
    """What `work` returns, from a fresh interpreter. Both have to be picklable.

    seconds: timeout; None = none. Raises ChildFailed if the work raises, if its process dies, or
    after the timeout. An error that is no VicortError also leaves its traceback on stderr. The
    process ends with this one, however this one ends.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(sender, work, arguments))
    with ExitStack() as stack:
        stack.callback(receiver.close)
        stack.callback(_kill, child)
        child.start()
        sender.close()
        if not receiver.poll(seconds):
            raise ChildFailed(f"it took longer than {seconds:g} s and was ended")
        try:
            failed, value = receiver.recv()
        except EOFError:
            child.join()
            raise ChildFailed(
                f"its process died with exit code {child.exitcode} (a negative one is a signal)"
            ) from None
    if failed:
        raise ChildFailed(*value)
    return value


def one_line(error: BaseException) -> str:
    """An error as one line: a VicortError's text; of others the type as well."""
    text = " ".join(str(error).split())
    if isinstance(error, VicortError):
        return text[:MAX_LINE]
    return f"{type(error).__name__}: {text}"[:MAX_LINE]


def _kill(child: BaseProcess) -> None:
    if child.pid is not None:  # it was started
        child.kill()
        child.join()


def _run(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        result = ForkingPickler.dumps((False, work(*arguments)))
    except VicortError as error:
        result = ForkingPickler.dumps((True, (one_line(error), error.exit_code)))
    except BaseException as error:  # noqa: BLE001 (reported to the parent, whatever it is)
        traceback.print_exc()
        result = ForkingPickler.dumps((True, (one_line(error),)))
    with suppress(BrokenPipeError):  # the parent has ended
        sender.send_bytes(result)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)
