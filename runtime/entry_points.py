"""The first code of every command: it imports nothing heavy, so that Ctrl-C and SIGTERM are taken
from the start and a package that is missing is one line.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

INTERRUPTED = 130  # exit code: 128 + SIGINT
TERMINATED = 143  # exit code: 128 + SIGTERM
MISSING = 2  # exit code, where a package is not installed
# of a command that a signal ends, by its number
EXIT_CODES: dict[int, int] = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
# what removes temporary files, where a signal ends the process at once
BEFORE_LEAVING: list[Callable[[], object]] = []


def run(arguments: Sequence[str] | None = None) -> int:
    """vicort-run. arguments: None = of the process. Returns the exit code."""
    return _start("vicort-run", "vicort.runtime.cli.run", arguments)


def build(arguments: Sequence[str] | None = None) -> int:
    """vicort-build, as `run`."""
    return _start("vicort-build", "vicort.export.build", arguments)


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
    code = MISSING
    try:
        with InterruptedAtOnce():
            from importlib import import_module

            main = import_module(module).main
        with TerminatedLikeInterrupted():
            code = main(arguments) if arguments is not None else _main_of_process(main)
    except ModuleNotFoundError as error:
        from vicort.runtime.packages import missing_package

        line = missing_package(error)
        if line is None:
            raise
        print(f"{command}: {line}", file=sys.stderr)
    except KeyboardInterrupt as interruption:
        code = code_of(interruption)
    finally:
        if arguments is None:  # the process ends now
            _flush()
            _take_interrupts(b"")
    if arguments is None and code in (INTERRUPTED, TERMINATED):
        os._exit(code)  # everything is removed, and the ends of libraries take seconds
    return code


def _main_of_process(main: Callable[[None], int]) -> int:
    from vicort.runtime.timely_end import TimelyEnd

    with TimelyEnd():
        return main(None)


class Terminated(KeyboardInterrupt):
    """SIGTERM. It ends a command like Ctrl-C: what is half written is removed, what is whole is
    kept."""


def code_of(interruption: KeyboardInterrupt) -> int:
    """The exit code of a command that was ended so."""
    return TERMINATED if isinstance(interruption, Terminated) else INTERRUPTED


class TerminatedLikeInterrupted:
    """A context in which SIGTERM raises Terminated in the main thread."""

    active: object = None  # the handler of the innermost such context

    def __enter__(self) -> None:
        process = os.getpid()

        def end(number: int, frame: FrameType | None) -> None:
            if os.getpid() == process:
                raise Terminated
            # a child that another library forked: it ends as if the handler were not there
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        self._before: object = None
        self._outer = self.active
        try:
            self._before = signal.signal(signal.SIGTERM, end)
        except ValueError:  # not the main thread, which alone handles signals
            return
        TerminatedLikeInterrupted.active = end

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]
            TerminatedLikeInterrupted.active = self._outer


class InterruptedAtOnce:
    """A context in which Ctrl-C and SIGTERM end the process there and then, with exit code 130 or
    143 and a line on stderr. It is for imports: libraries in C do not bear an exception while they
    are loaded."""

    def __init__(self, line: str = "") -> None:
        self._line = f"{line}\n".encode() if line else b""
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        self._before = _take_interrupts(self._line)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _take_interrupts(line: bytes) -> dict[int, object]:
    """The handlers that were there before, of those signals that are Python's or vicort's own to
    handle."""

    def leave(number: int, frame: FrameType | None) -> None:
        for act in BEFORE_LEAVING:
            act()
        if line:
            os.write(2, line)
        os._exit(EXIT_CODES[number])

    before: dict[int, object] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        own = handler in (signal.default_int_handler, TerminatedLikeInterrupted.active)
        if not own and (number, handler) != (signal.SIGTERM, signal.SIG_DFL):
            continue
        try:
            signal.signal(number, leave)
        except ValueError:  # not the main thread, which alone handles signals
            break
        before[number] = handler
    return before


def _flush() -> None:
    from contextlib import suppress

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # reported as the interpreter ends
            stream.flush()
