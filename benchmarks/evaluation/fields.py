"""Readers of benchmark data. Errors are one line with the file, the entry and the key."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from vicort.benchmarks.evaluation.frame_arrays import SUFFIX
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import brief, shown

KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
# "" = a folder of images
DATA_FILE = "the benchmark's data file"
MAX_SECONDS = 1e9  # of a time in data
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", SUFFIX, "")


# digits of a time, with decimals
CLOCK_PART = re.compile(r"[0-9]{1,9}\.?[0-9]{0,12}|\.[0-9]{1,12}")


@dataclass(frozen=True)
class Entry:
    """One object of a data file. Its methods raise ConfigError."""

    content: dict[str, Any]
    where: str  # names it in errors: file, entry

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def wrong(self, key: str, allowed: str) -> ConfigError:
        found = (
            f"{key!r} is {shown(self.content[key])}"
            if key in self.content
            else f"key {key!r} is missing"
        )
        return ConfigError(f"{self.where}: {found}: give {allowed}")

    def text(self, key: str) -> str:
        value = self._of_kind(key, str)
        if not value.strip():
            raise self.wrong(key, "text that is not empty")
        return value

    def any_text(self, key: str) -> str:
        """Any value as text; "" if it is missing."""
        return str(self.content.get(key, ""))

    def whole(self, key: str) -> int:
        return self._of_kind(key, int)

    def seconds(self, key: str) -> Fraction:
        """A number of seconds, exact as it is written."""
        value = self.content.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < MAX_SECONDS
        ):
            raise self.wrong(key, "a number of seconds")
        return Fraction(str(value))

    def seconds_or_text(self, key: str) -> Fraction:
        """The same, or such a number as text."""
        value = self.content.get(key)
        if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]+)?\s*", value):
            return Fraction(value.strip())
        return self.seconds(key)

    def clock(self, key: str) -> Fraction:
        """Seconds of HH:MM:SS, MM:SS or SS; seconds may have decimals."""
        parts = self.text(key).split(":")
        if len(parts) > 3 or not all(map(CLOCK_PART.fullmatch, parts)):
            raise self.wrong(key, "a time as HH:MM:SS")
        found = sum(
            (Fraction(part) * 60**power for power, part in enumerate(reversed(parts))), Fraction(0)
        )
        if found >= MAX_SECONDS:
            raise self.wrong(key, f"a time below {MAX_SECONDS:g} seconds")
        return found

    def one_of(self, key: str, allowed: str) -> str:
        """A single letter out of `allowed`."""
        value = self.text(key)
        if len(value) != 1 or value not in allowed:
            raise self.wrong(key, f"one letter of {allowed}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts or numbers, or such a list as Python prints it (as CSV files hold it)."""
        value = self.content.get(key)
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                value = None
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(each, str | int | float) for each in value)
        ):
            raise self.wrong(key, "a list of texts")
        return [str(each) for each in value]

    def inside(self, key: str) -> Entry:
        """The object in it."""
        return Entry(self._of_kind(key, dict), f"{self.where}, {key}")

    def entries(self, key: str) -> list[Entry]:
        """The objects of a list in it."""
        return entries_of(self._of_kind(key, list), f"{self.where}, {key}")

    def _of_kind(self, key: str, kind: type) -> Any:
        value = self.content.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(key, KINDS[kind])
        return value


def entries_of(content: Any, where: str) -> list[Entry]:
    if not isinstance(content, list):
        raise ConfigError(f"{where} is {shown(content)}: give a list of objects")
    for number, each in enumerate(content):
        if not isinstance(each, dict):
            raise ConfigError(f"{where}, entry {number} is {shown(each)}: give an object")
    return [Entry(each, f"{where}, entry {number}") for number, each in enumerate(content)]


def read_json(path: Path, allowed: str = DATA_FILE) -> Any:
    """allowed: what to name instead. Raises ConfigError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name {allowed}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({brief(error)}): name {allowed}") from error


def read_csv(path: Path) -> list[Entry]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): name the benchmark's data file"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not CSV in UTF-8 ({error}): name the benchmark's data file"
        ) from error
    return [
        Entry({key: value for key, value in row.items() if key}, f"{path}, row {number}")
        for number, row in enumerate(rows, 2)
    ]


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each data file, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def find_video(folders: Sequence[Path], named: str) -> Path | None:
    """The file or folder of images that data calls `named`: the longest suffix of that path which
    exists in one of the folders, or None."""
    parts = [
        part for part in PurePosixPath(named.replace("\\", "/")).parts if part not in ("/", ".")
    ]
    if ".." in parts:
        return None
    return first_there(
        folder.joinpath(*parts[first:]) for first in range(len(parts)) for folder in folders
    )


def find_any(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of the names that exists with a video suffix or as a folder, or None."""
    return first_there(
        folder / (name + suffix)
        for name in names
        for suffix in VIDEO_SUFFIXES
        for folder in folders
    )


def first_there(paths: Iterable[Path]) -> Path | None:
    return next(filter(_is_there, paths), None)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file, such as one that is too long
        return False
