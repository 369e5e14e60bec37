"""Writes docs/cli.md from the argument parsers of the commands; `--check` only compares.

The parser of a command is the object that prints its help, so this script knows no function of the
commands but their entry points.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

PAGE = Path(__file__).parents[1] / "cli.md"
COMMANDS = (
    "vicort-run",
    "vicort-build",
    "vicort-info",
    "vicort-engines",
    "vicort-bench",
    "vicort-eval",
)
HEAD = """\
# Command line

<!-- Written by docs/tools/cli.py from the argument parsers. Do not edit: run `make docs`. -->

Every command takes `--help`. A failure is one line on stderr: the value, what is allowed, and the
next command to try. Sources, question files, output formats, events and exit codes are described
in [events.md](events.md).

## Completion

`--print-completion bash|zsh|fish` prints a script by which a shell completes the options of a
command, their choices, files and folders. It needs [shtab](https://github.com/tqdm/shtab)
(`pip install shtab`), once: the script is static, so pressing Tab starts no Python.
After an upgrade, print it again.

    for command in vicort-run vicort-build vicort-info vicort-engines vicort-bench vicort-eval; do
        $command --print-completion bash > ~/.local/share/bash-completion/completions/$command
        $command --print-completion zsh > ~/.zfunc/_$command    # a folder of $fpath
        $command --print-completion fish > ~/.config/fish/completions/$command.fish
    done
"""


class _HelpAsked(Exception):
    """Raised in place of printing help; its first argument is the parser."""


def find_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a console script of this project. Raises LookupError if it prints no help."""

    def capture(parser: argparse.ArgumentParser, file: object = None) -> None:
        raise _HelpAsked(parser)

    main = next(iter(entry_points(group="console_scripts", name=command))).load()
    with mock.patch.object(argparse.ArgumentParser, "print_help", capture):
        try:
            main(["--help"])
        except _HelpAsked as asked:
            return asked.args[0]
    raise LookupError(f"{command} --help did not print the help of an argparse parser")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, child in action.choices.items()
    }


def page() -> str:
    """The text of docs/cli.md."""
    return HEAD + "".join(
        f"\n{line}".rstrip(" ") if line else "\n"
        for command in COMMANDS
        for line in _command(find_parser(command), "##")
    )


def _command(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    yield from (f"{heading} {parser.prog}", "", *textwrap.wrap(parser.description or "", 100), "")
    yield from ("```text", *_usage(parser), "```", "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_shown(action)]
        if actions:
            yield from (f"**{(group.title or 'options').capitalize()}**", "")
            for action in actions:
                yield from _bullet(parser, action)
            yield ""
    for child in subcommands(parser).values():
        yield from _command(child, f"{heading}#")


def _is_shown(action: argparse.Action) -> bool:
    hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return action.help != argparse.SUPPRESS and not hidden


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    words = parser.format_usage().removeprefix("usage:").split()
    return textwrap.wrap(
        " ".join(words),
        96,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _bullet(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    formatter = parser._get_formatter()
    if action.option_strings:
        value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        called = f"{', '.join(action.option_strings)} {value if action.nargs != 0 else ''}".strip()
    else:
        called = formatter._format_args(
            action, formatter._get_default_metavar_for_positional(action)
        )
    meaning = formatter._expand_help(action) if action.help else ""
    meaning = re.sub(r"(?<= )-(?= )", "`-`", re.sub(r"[<\[]", r"\\\g<0>", meaning))
    return textwrap.wrap(
        f"- `{called}`: {' '.join(meaning.split())}".removesuffix(": "),
        100,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def main() -> int:
    wanted = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
        print("docs/cli.md differs from the argument parsers: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
