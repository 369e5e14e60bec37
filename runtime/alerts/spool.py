"""The file in which messages wait until they are delivered: SQLite, one row a message and target.

A message is written with one durable transaction (write-ahead log, `synchronous = FULL`): when
`write` has returned, it survives the end of the process and of the machine. Removing a row is not
durable by itself (`NORMAL`): a row that comes back after a loss of power is delivered once more,
with the same key. Removed rows leave free pages, which the next messages use.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from vicort.runtime.alerts.message import Message
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import brief, printable

APPLICATION = 0x76696372  # "vicr", in the file's header
VERSION = 1
MAX_LOG = 4 << 20  # bytes of the write-ahead log from which on it is copied to the file
SCHEMA = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL, alert TEXT NOT NULL, stream TEXT NOT NULL, state TEXT NOT NULL,
    body TEXT NOT NULL, picture BLOB
);
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    message INTEGER NOT NULL REFERENCES messages (id), target TEXT NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX delivery_of_message ON deliveries (message);
"""


class SpoolRow(NamedTuple):
    """A message that waits for a target. size: bytes that are counted for it. message: its number,
    which the rows of its other targets have too."""

    number: int
    target: str
    size: int
    message: int


class Spool:
    """The file, which belongs to one process. Methods may be called from any thread.

    All raise sqlite3.Error if the file cannot be read or written, as when the disk is full.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Opens or makes the file. One that is damaged is set aside, and `warn` is called.

        Raises ConfigError if another process uses it, if it belongs to another program or version,
        or if it cannot be opened.
        """
        self._path = path
        self._lock = threading.Lock()
        self._tidying = threading.Lock()
        with _readable(path):
            self._holder = _hold(path)
        try:
            with _readable(path):
                self._connection = self._opened(warn)
                self._other = _connect(path)
        except BaseException:
            self._holder.close()
            raise

    def waiting(self) -> list[SpoolRow]:
        """All rows, the oldest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, target, size, message FROM deliveries ORDER BY id"
            )
            return [SpoolRow(*row) for row in rows]

    def write(
        self, messages: Sequence[tuple[Message, Sequence[tuple[str, int]]]], removed: Iterable[int]
    ) -> list[list[int]]:
        """Write messages, each with targets and sizes, and remove rows, in one durable transaction.

        Returns the numbers of the rows of each message.
        """
        with self._transaction("FULL"):
            self._remove(removed)
            return [self._insert(message, targets) for message, targets in messages]

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove rows, and messages that no row refers to."""
        with self._transaction("NORMAL"):
            self._remove(numbers)

    def read(self, number: int) -> Message | None:
        """The message of a row; None if it is gone. Raises ValueError if it is damaged."""
        with self._lock:
            row = self._connection.execute(
                "SELECT key, alert, stream, state, body, picture FROM messages "
                "WHERE id = (SELECT message FROM deliveries WHERE id = ?)",
                (number,),
            ).fetchone()
        if row is None:
            return None
        key, alert, stream, state, body, picture = row
        return Message(key, alert, stream, state, json.loads(body), picture)

    def tidy(self) -> None:
        """Copy the write-ahead log to the file where it has grown. Writers do not wait for it."""
        with suppress(OSError, sqlite3.Error), self._tidying:
            if os.path.getsize(f"{self._path}-wal") > MAX_LOG:
                self._other.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        with self._lock, self._tidying:
            self._other.close()
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._holder.close()

    def _opened(self, warn: Callable[[str], None]) -> sqlite3.Connection:
        try:
            return _open(self._path)
        except sqlite3.OperationalError:
            raise  # it may be whole: a full disk, missing rights
        except sqlite3.DatabaseError as error:
            aside = _set_aside(self._path)
            warn(
                f"the spool {printable(str(self._path))} is damaged ({brief(error)}): it was "
                f"renamed to {printable(aside.name)}, and an empty one is used"
            )
            return _open(self._path)

    @contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        with self._lock:
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have done so already
                    self._connection.execute("ROLLBACK")
                raise

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            message = self._connection.execute(
                "SELECT message FROM deliveries WHERE id = ?", (number,)
            ).fetchall()
            self._connection.execute("DELETE FROM deliveries WHERE id = ?", (number,))
            self._connection.executemany(
                "DELETE FROM messages WHERE id = ?1 "
                "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE message = ?1)",
                message,
            )

    def _insert(self, message: Message, targets: Sequence[tuple[str, int]]) -> list[int]:
        body = json.dumps(message.body, allow_nan=False, separators=(",", ":"))
        number = self._connection.execute(
            "INSERT INTO messages (key, alert, stream, state, body, picture) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (message.key, message.alert, message.stream, message.state, body, message.picture),
        ).lastrowid
        rows = []
        for target, size in targets:
            row = self._connection.execute(
                "INSERT INTO deliveries (message, target, size) VALUES (?, ?, ?)",
                (number, target, size),
            )
            rows.append(row.lastrowid or 0)
        return rows


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # text that is damaged is then a ValueError; SQLite's own is that of a disk that fails
    connection.text_factory = bytes.decode
    return connection


def _open(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError if the file is damaged, and ConfigError if it is not ours."""
    # with pictures in it, so for its owner alone; SQLite gives its other files the same rights
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = _connect(path)
    try:
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its content is not consistent")
        _check_kind(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # by `tidy`
        connection.execute(f"PRAGMA journal_size_limit = {MAX_LOG}")
        return connection
    except BaseException:
        connection.close()
        raise


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of a new file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application:
        connection.executescript(
            f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION}; "
            f"PRAGMA user_version = {VERSION}; COMMIT;"
        )
    elif (application, version) != (APPLICATION, VERSION):
        what = "of another version" if application == APPLICATION else "of another program"
        raise ConfigError(
            f"{printable(str(path))} is a database {what}: name another file for the spool"
        )


def _hold(path: Path) -> IO[str]:
    """The lock of the spool, which ends with this process however that ends."""
    name = f"{path}.lock"
    number = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    file = os.fdopen(number, "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = file.read(20).strip()
        file.close()
        raise ConfigError(
            f"the spool {printable(str(path))} is in use by "
            f"{f'process {owner}' if owner.isdecimal() else 'another process'}: end it, or name "
            "another spool"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _set_aside(path: Path) -> Path:
    """Rename a file and SQLite's files beside it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = (f"{path}.damaged-{stamp}{f'-{number}' if number else ''}" for number in range(1000))
    aside = Path(next(name for name in names if not os.path.lexists(name)))
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{end}", f"{aside}{end}")
    return aside


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"the spool {printable(str(path))} cannot be opened ({brief(error)}): name a file in a "
            "folder that exists and that you may write to"
        ) from error
