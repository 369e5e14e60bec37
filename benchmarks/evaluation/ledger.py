"""The record of an evaluation, from which it resumes after an interruption: JSON lines, one for
each video.

The first line holds the settings; a line {"system", "is"} defines a system's name; all others are
results of one video. A line that was cut off by the end of the process is dropped, and its video is
watched again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.items import Reply
from vicort.benchmarks.evaluation.watching import Watched
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import shown
from vicort.runtime.written_files import appended, write_file


class Ledger:
    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Starts or opens a record. Raises ConfigError if it has other settings, or is no
        record."""
        self.path = path
        self.watched: dict[tuple[str, str], Watched] = {}  # by system and video
        self.systems: dict[str, Any] = {}  # definition of each name
        lines = list(_read(path)) if path.is_file() else []
        if not lines:
            write_file(self.path, "")
            self._write({"settings": settings})
            return
        self._check("settings", lines[0].get("settings"), settings)
        try:
            for line in lines[1:]:
                self._take(line)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} is no record of vicort-eval: name another folder with --out"
            ) from error

    def declare(self, system: str, what: dict[str, Any]) -> None:
        """Records the definition of a system's name. Raises ConfigError if the record has another
        one."""
        if system in self.systems:
            self._check(f"system {system}", self.systems[system], what)
        else:
            self.systems[system] = what
            self._write({"system": system, "is": what})

    def add(self, system: str, video: str, watched: Watched) -> None:
        self.watched[system, video] = watched
        replies = [reply.to_json() for reply in watched.replies]
        self._write(
            {
                "system": system,
                "video": video,
                "replies": replies,
                "warnings": watched.warnings,
                "summary": watched.summary,
            }
        )

    def _take(self, line: dict[str, Any]) -> None:
        if "is" in line:
            self.systems[line["system"]] = line["is"]
        else:
            replies = [Reply.from_json(reply) for reply in line["replies"]]
            self.watched[line["system"], line["video"]] = Watched(
                replies, line["warnings"], line["summary"]
            )

    def _check(self, name: str, before: Any, now: dict[str, Any]) -> None:
        now = json.loads(json.dumps(now))
        if before == now:
            return
        if not isinstance(before, dict):
            raise ConfigError(
                f"{self.path} is no record of vicort-eval: name another folder with --out"
            )
        key = next(key for key in [*now, *before] if before.get(key) != now.get(key))
        raise ConfigError(
            f"{self.path} was started with {name}: {key} {shown(before.get(key))}, this run has "
            f"{shown(now.get(key))}: keep the setting, or name another folder with --out"
        )

    def _write(self, content: dict[str, Any]) -> None:
        with appended(self.path) as file:
            file.write((json.dumps(content, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Each complete line; the file is truncated after the last one."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    for line in content[:whole].splitlines():
        try:
            parsed = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path} is no record of vicort-eval: name another folder with --out"
            ) from error
        if not isinstance(parsed, dict):
            raise ConfigError(f"{path} is no record of vicort-eval: name another folder with --out")
        yield parsed
