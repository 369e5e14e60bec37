"""The first code of every command: it imports nothing heavy, so that Ctrl-C is taken from the start
and a package that is missing is one line.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

INTERRUPTED = 130  # exit code: 128 + SIGINT
MISSING = 2  # exit code, where a package is not installed


def run(arguments: Sequence[str] | None = None) -> int:
    """vicort-run. arguments: None = of the process. Returns the exit code."""
    return _start("vicort-run", "vicort.runtime.cli.run", arguments)


def build(arguments: Sequence[str] | None = None) -> int:
    """vicort-build, as `run`."""
    code = _start("vicort-build", "vicort.export.build", arguments)
    if code == INTERRUPTED and arguments is None:
        os._exit(code)  # everything is removed, and freeing PyTorch's objects takes seconds
    return code


def info(arguments: Sequence[str] | None = None) -> int:
    """vicort-info, as `run`."""
    return _start("vicort-info", "vicort.runtime.cli.info", arguments)


def engines(arguments: Sequence[str] | None = None) -> int:
    """vicort-engines, as `run`."""
    return _start("vicort-engines", "vicort.runtime.cli.engine_list", arguments)


def bench(arguments: Sequence[str] | None = None) -> int:
    """vicort-bench, as `run`."""
    return _start("vicort-bench", "vicort.benchmarks.bench", arguments)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """vicort-eval, as `run`."""
    return _start("vicort-eval", "vicort.benchmarks.evaluation.eval_run", arguments)


def _start(command: str, module: str, arguments: Sequence[str] | None) -> int:
    try:
        with InterruptedAtOnce():
            from importlib import import_module

            main = import_module(module).main
        return main(arguments)
    except ModuleNotFoundError as error:
        from vicort.runtime.packages import missing_package

        line = missing_package(error)
        if line is None:
            raise
        print(f"{command}: {line}", file=sys.stderr)
        return MISSING
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if arguments is None:  # the process ends now
            _flush()
            _take_interrupts(b"")


class InterruptedAtOnce:
    """A context in which Ctrl-C ends the process there and then, with exit code 130 and a line on
    stderr. It is for imports: libraries in C do not bear an exception while they are loaded."""

    def __init__(self, line: str = "") -> None:
        self._line = f"{line}\n".encode() if line else b""
        self._taken = False

    def __enter__(self) -> None:
        self._taken = _take_interrupts(self._line)

    def __exit__(self, *_: object) -> None:
        if self._taken:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _take_interrupts(line: bytes) -> bool:
    """Returns False if Ctrl-C is not Python's own to handle."""

    def leave(number: int, frame: FrameType | None) -> None:
        if line:
            os.write(2, line)
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    try:
        signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread, which alone handles signals
        return False
    return True


def _flush() -> None:
    from contextlib import suppress

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # reported as the interpreter ends
            stream.flush()
