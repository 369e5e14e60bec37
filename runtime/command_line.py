"""Parsing that the command line tools share."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from typing import NoReturn

from vicort.runtime.errors import ConfigError

RATE = re.compile(r"\d{1,9}(\.\d{1,9}|/\d{1,9})?")


class ArgumentParser(argparse.ArgumentParser):
    """Raises ConfigError with one line instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see `{self.prog} --help`")


def parse_rate(option: str, text: str, advice: str) -> Fraction:
    """Frames a second, from a number or a ratio such as 30000/1001.

    advice: which values the option accepts. Raises ConfigError unless the rate is above 0.
    """
    if not RATE.fullmatch(text) or re.fullmatch(r".*/0+", text) or not Fraction(text):
        raise ConfigError(f"{option} {text} is not a rate: {advice}")
    return Fraction(text)
