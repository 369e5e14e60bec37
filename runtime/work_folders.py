"""Folders in which builds work, beside what they make.

Each has a name of its own and a file that its process locks. The lock ends with the process, in
whatever container that was, so what a killed build left is told from one that still works.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from vicort.runtime.entry_points import BEFORE_LEAVING
from vicort.runtime.errors import ConfigError

NAME = re.compile(r"\.building-\d{1,9}-[0-9a-f]{8}(-replaced)?")
LOCK = "lock"
MARK = "A vicort build works in this folder while this file is locked.\n"
STARTING = 60.0  # seconds in which a build marks its folder
REPLACED = "replaced"  # holds what was moved away, under its own name, until the new one stands


@contextmanager
def work_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root`, which is made too, removed afterwards. First removes those that
    killed builds left there.

    Raises ConfigError if no folder can be made there.
    """
    with ExitStack() as stack:
        try:
            stack.callback(_remove_empty, _make(root))
            remove_abandoned(root)
            # a process id is not unique: a build in another container may have the same
            folder = root / f".building-{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir()
            clear = partial(_clear, folder)
            stack.callback(clear)
            stack.callback(BEFORE_LEAVING.remove, clear)
            BEFORE_LEAVING.append(clear)
            stack.callback(os.close, _locked(folder))
        except OSError as error:
            raise ConfigError(
                f"no folder can be made in {root} ({error.strerror}): name a folder elsewhere "
                "with --out"
            ) from error
        yield folder


def _make(folder: Path) -> list[Path]:
    """Makes a folder and its parents. Returns those that were not there, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # one that is not empty ends it
        for folder in folders:
            folder.rmdir()


def _locked(folder: Path) -> int:
    """Makes the lock file, and marks it once the lock is held. Returns its descriptor."""
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: nobody can take it for abandoned
            fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, MARK.encode())
    except BaseException:
        os.close(file)
        raise
    return file


def remove_abandoned(root: Path) -> None:
    """Remove what killed builds left in `root`. A set that one of them had moved away, and not yet
    replaced, is put back."""
    for folder in list(root.iterdir()):
        if NAME.fullmatch(folder.name):
            with suppress(OSError):  # of another user, or another process removes it now
                remove_work_folder(folder)


def remove_work_folder(folder: Path) -> bool:
    """Remove one, if it is abandoned; returns whether it was. Raises OSError."""
    with _held(folder) as abandoned:
        abandoned = abandoned or _never_began(folder)
        if abandoned:
            _put_back(folder)
            shutil.rmtree(folder)
    return abandoned


def _never_began(folder: Path) -> bool:
    """Whether a build was killed right after it made the folder, before it could mark it."""
    if folder.is_symlink() or time.time() - folder.stat().st_mtime < STARTING:
        return False
    return all(each.name == LOCK and each.stat().st_size == 0 for each in folder.iterdir())


def _clear(folder: Path) -> None:
    with suppress(OSError):
        _put_back(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _put_back(folder: Path) -> None:
    for moved in _entries(folder / REPLACED):
        if not os.path.lexists(folder.parent / moved.name):
            moved.rename(folder.parent / moved.name)


def why_kept(folder: Path) -> str:
    """Why a folder of such a name is not removed; "" if it is what a killed build left."""
    try:
        with _held(folder) as abandoned:
            if abandoned:
                return ""
            marked = _is_marked(folder / LOCK)
    except OSError:
        marked = False
    if marked:
        return "a build is at work in it"
    return "it has no lock file of a build: look at it, and remove it yourself"


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock if no process has it, and yields whether the folder is abandoned."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    if folder.is_symlink() or not _is_marked(folder / LOCK):
        yield False
        return
    file = os.open(folder / LOCK, flags)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def _is_marked(lock: Path) -> bool:
    """Whether a build has written the file, which it does once it holds the lock."""
    try:
        return not lock.is_symlink() and lock.is_file() and lock.read_bytes() == MARK.encode()
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def check_new(folder: Path) -> None:
    """Raises ConfigError unless `folder` is missing or empty."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is there and is not overwritten: name a new folder, or remove it"
        )
