"""vicort-engines: which engine sets there are, which of them run, and how to remove the others."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vicort.runtime.cli.engine_inspection import FoundSet, inspect_root
from vicort.runtime.cli.sizes import size_text
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.entry_points import code_of
from vicort.runtime.errors import ConfigError, EngineError, VicortError
from vicort.runtime.locations import engines_root
from vicort.runtime.safe_text import print_safely
from vicort.runtime.set_folders import remove_set
from vicort.runtime.shell_completion import add_completion_option
from vicort.runtime.standard_streams import standard_streams
from vicort.runtime.work_folders import NAME, remove_work_folder

READER_GONE = 141  # exit code: 128 + SIGPIPE


@dataclass(frozen=True)
class Removal:
    """A folder that `prune` removes, and why."""

    folder: Path
    bytes: int
    why: str


@standard_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool and return its exit code."""
    try:
        typed = _parser().parse_args(arguments)
        root = typed.folder or engines_root()
        if typed.folder and not root.is_dir():
            raise ConfigError(f"--folder {root} is not a folder: name one that holds engine sets")
        return typed.command(root, typed)
    except VicortError as error:
        print_safely(f"vicort-engines: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        return code_of(interruption)
    except BrokenPipeError:
        # stdout is flushed again at exit, which must not print an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "vicort-engines",
        description="List the engine sets that are built, and remove those that cannot run.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        dest="name", required=True, metavar="COMMAND", parser_class=ArgumentParser
    )
    words = "Show each set's model, size and date, and whether this version of vicort can run it."
    listing = commands.add_parser("list", help=words, description=words, allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="write JSON")
    listing.set_defaults(command=_list)
    words = (
        "Remove engine sets that this version of vicort cannot run, and what builds that were "
        "killed have left. Other folders are not touched."
    )
    pruning = commands.add_parser("prune", help=words, description=words, allow_abbrev=False)
    pruning.add_argument(
        "--here",
        action="store_true",
        help="also remove sets that only this machine cannot run: their backend or GPU driver is "
        "missing, or memory is too small",
    )
    pruning.add_argument("--dry-run", action="store_true", help="show what would go, and end")
    pruning.add_argument("--yes", action="store_true", help="remove without asking")
    pruning.set_defaults(command=_prune)
    for each in (listing, pruning):
        each.add_argument(
            "--folder",
            type=Path,
            metavar="DIR",
            help="where the engine sets are (default: where vicort-build puts them)",
        )
    add_completion_option(parser)
    return parser


def _list(root: Path, typed: argparse.Namespace) -> int:
    sets, leftovers = inspect_root(root, rebuilds=True)
    if typed.json:
        found = {
            "folder": str(root),
            "sets": [asdict(each) for each in sets],
            "leftovers": [asdict(each) for each in leftovers],
        }
        print(json.dumps(found, indent=1))
        return 0
    total = size_text(sum(each.bytes for each in sets) + sum(each.bytes for each in leftovers))
    print_safely(
        f"{root}: engine sets: {len(sets)}, {total}", *(line for s in sets for line in _lines(s))
    )
    for left in leftovers:
        print_safely(
            f"  {left.name}: left over from a build, {size_text(left.bytes)}{_note(left.busy)}"
        )
    return 0


def _lines(found: FoundSet) -> list[str]:
    weights = f"weights in {found.weights}" if found.weights else ""
    activations = f"activations in {found.activations}" if found.activations else ""
    pages = "" if found.kv == "float" else f"keys and values in {found.kv}"
    parts = (found.model, found.precision, weights, activations, pages, found.backend)
    of_what = ", ".join(filter(None, parts))
    lines = [f"  {found.name}", f"    {of_what}; {size_text(found.bytes)}; built {found.built}"]
    if found.runs:
        lines.append("    runs here")
    elif found.readable:
        lines.append(f"    does not run here: {found.reason}")
    else:
        lines.append(f"    does not run: {found.reason}")
    if found.other:
        lines.append(f"    {found.other.removesuffix(',')}: never removed by vicort-engines")
    if found.rebuilt_for:
        lines.append(f"    vicort-build would build it again: {found.rebuilt_for}")
    return lines


def _note(text: str) -> str:
    return f" ({text})" if text else ""


def _prune(root: Path, typed: argparse.Namespace) -> int:
    removals = _removals(root, typed.here)
    if not removals:
        print_safely(f"{root}: nothing to remove")
        return 0
    for each in removals:
        print_safely(f"{each.folder}: {size_text(each.bytes)}: {each.why}")
    total = size_text(sum(each.bytes for each in removals))
    if typed.dry_run:
        print(f"{total} would be removed (folders: {len(removals)})")
        return 0
    if not typed.yes and not _agreed(f"remove {total} (folders: {len(removals)})? [y/N] "):
        print("nothing was removed")
        return 0
    # a set may have been built again while the question stood
    agreed = {each.folder for each in removals}
    removed: list[Removal] = []
    try:
        for each in _removals(root, typed.here):
            if each.folder in agreed:
                _remove(each.folder)
                removed.append(each)
    finally:
        total = size_text(sum(each.bytes for each in removed))
        print(f"removed {total} (folders: {len(removed)})" if removed else "nothing was removed")
    return 0


def _removals(root: Path, here: bool) -> list[Removal]:
    sets, leftovers = inspect_root(root)
    return [
        *(
            Removal(root / each.name, each.bytes, each.reason)
            for each in sets
            if not (each.is_link or each.other or each.runs) and (here or not each.readable)
        ),
        *(
            Removal(root / left.name, left.bytes, "left over from a build")
            for left in leftovers
            if not left.busy
        ),
    ]


def _agreed(question: str) -> bool:
    """Raises ConfigError if nobody can be asked."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError as error:
        raise ConfigError(
            "nothing was removed, because stdin brings no answer: give --yes, or --dry-run"
        ) from error


def _remove(folder: Path) -> None:
    try:
        if NAME.fullmatch(folder.name):
            remove_work_folder(folder)
        else:
            remove_set(folder)
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be removed ({error.strerror}): check its permissions"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
