"""`--print-completion`: scripts with which a shell completes the options of a command.

shtab writes them from the parser once, so that pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vicort.runtime.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
OPTION = "--print-completion"
# metavars of arguments that are names of files or folders, although their type is text
FILES = ("SOURCE", "MODEL", "NAME|FILE")
FOLDERS = ("DIR",)


def add_completion_option(parser: argparse.ArgumentParser) -> None:
    """The option prints the script and ends the program, before other arguments are checked."""
    parser.add_argument(
        OPTION,
        action=_PrintCompletion,
        dest=argparse.SUPPRESS,  # no value is left in the namespace
        default=argparse.SUPPRESS,
        choices=SHELLS,
        help="print a script that completes this command in a shell, and end",
    )


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """shell: one of SHELLS. Raises ConfigError if shtab is not installed."""
    try:
        import shtab  # an optional dependency
    except ImportError as error:
        raise ConfigError(
            f"{OPTION} {shell} needs shtab, which is not installed: run `pip install shtab`"
        ) from error
    for action in _actions(parser):
        names = (action.metavar,) if isinstance(action.metavar, str) else action.metavar or ()
        if set(names) & set(FOLDERS):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or set(names) & set(FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of subcommands too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(completion_script(parser, str(values)))
        parser.exit()
