"""Which alerts had fired when the last run ended, so that the next one can clear them.

The file also counts the changes of each alert, and has a random name of its own. The key of an
event is made of these: a process that is killed after it sent an event, and before it noted that,
sends the next event of this kind with the same key.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from vicort.runtime.alerts.rule import AlertState
from vicort.runtime.errors import VicortError
from vicort.runtime.safe_text import brief, read_text
from vicort.runtime.written_files import write_file

NAME = "states.json"
MAX_BYTES = 1 << 20


class LastStates:
    """A file in the evidence folder, written at each change. Thread-safe. A file that cannot be
    read or written is a warning: alerts then begin as not fired."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._path = folder / NAME
        self._warn = warn
        self._lock = threading.Lock()
        self._id = uuid.uuid4().hex
        self._fired: frozenset[str] = frozenset()
        self._counts: dict[str, int] = {}  # changes of each alert that were sent
        self._given: dict[str, int] = {}  # number of the newest key of each
        known = self._read()
        self._given.update(self._counts)
        if not known:
            self._write("the states of alerts are")

    def fired(self, stream: str, alert: str) -> bool:
        with self._lock:
            return f"{stream}/{alert}" in self._fired

    def next_key(self, stream: str, alert: str, state: AlertState) -> tuple[str, int]:
        """The key of the next change, which no other change has, and its number for `note`."""
        name = f"{stream}/{alert}"
        with self._lock:
            number = self._given[name] = self._given.get(name, 0) + 1
        content = f"{self._id} {name} {number} {state}"
        return hashlib.sha256(content.encode()).hexdigest()[:32], number

    def note(self, stream: str, alert: str, state: AlertState, number: int) -> None:
        """A change was sent. number: of its key."""
        name = f"{stream}/{alert}"
        with self._lock:
            self._fired = self._fired | {name} if state == "fired" else self._fired - {name}
            self._counts[name] = number
            self._write(f"the state of alert {alert} is")

    def _write(self, what: str) -> None:
        content = {"id": self._id, "fired": sorted(self._fired), "changes": self._counts}
        try:
            write_file(self._path, json.dumps(content), "evidence", private=True)
        except VicortError as error:
            self._warn(f"{what} not kept for the next run: {error}")

    def _read(self) -> bool:
        """Whether there was a whole file."""
        try:
            content = json.loads(read_text(self._path, MAX_BYTES))
            fired = frozenset(map(str, content["fired"]))
            counts = {str(name): int(count) for name, count in content["changes"].items()}
            self._id, self._fired, self._counts = str(content["id"]), fired, counts
        except FileNotFoundError:
            return False
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            self._warn(
                f"the states of the last run in {self._path} cannot be read ({brief(error)}): "
                "alerts begin as not fired"
            )
            return False
        return True
