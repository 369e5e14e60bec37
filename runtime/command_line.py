"""Parsing that the command line tools share."""

from __future__ import annotations

import argparse
import difflib
import re
from fractions import Fraction
from typing import NoReturn

from vicort.runtime.errors import ConfigError

RATE = re.compile(r"\d{1,9}(\.\d{1,9}|/\d{1,9})?")


# decimal, as disks are sold and `vicort` counts, and binary, as `free` counts
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(\w+)")


MAX_MESSAGE = 300  # characters of what argparse says, which quotes the value


class ArgumentParser(argparse.ArgumentParser):
    """Raises ConfigError with one line instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        option = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        owners = self._owners_of(option[1]) if option else []
        near = difflib.get_close_matches(option[1], self._options(), 1) if option else []
        if option and owners:
            advice = f"{option[1]} is an option of {', '.join(owners)}: leave it out"
        elif near:
            advice = f"did you mean {near[0]}? `{self.prog} --help` lists all"
        else:
            advice = f"see `{self.prog} --help`"
        quoted = message[:MAX_MESSAGE] + "…" * (len(message) > MAX_MESSAGE)
        raise ConfigError(f"{quoted}: {advice}")

    def _owners_of(self, option: str) -> list[str]:
        """The subcommands that have this option."""
        return [
            name
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name, child in action.choices.items()
            if option in child._option_string_actions
        ]

    def _options(self) -> list[str]:
        """Those of subcommands too."""
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [name for child in action.choices.values() for name in child._options()]
        return found


def parse_rate(option: str, text: str, advice: str) -> Fraction:
    """Frames a second, from a number or a ratio such as 30000/1001.

    advice: which values the option accepts. Raises ConfigError unless the rate is above 0.
    """
    if not RATE.fullmatch(text) or re.fullmatch(r".*/0+", text) or not Fraction(text):
        raise ConfigError(f"{option} {text} is not a rate: {advice}")
    return Fraction(text)


def parse_megabytes(option: str, text: str) -> float:
    """MB of 1e6 bytes, from a size such as 4GB. Raises ConfigError."""
    found = SIZE.fullmatch(text)
    units = {name.lower(): size for name, size in UNITS.items()}
    if not found or found[2].lower() not in units:
        raise ConfigError(
            f"{option} {text} is not a size: give a number and one of {', '.join(UNITS)}, such as "
            "4GB or 512MB"
        )
    return float(Fraction(found[1]) * Fraction(units[found[2].lower()]) / 1_000_000)
