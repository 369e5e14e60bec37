"""Which folders are engine sets that vicort made: only these are replaced or removed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import CALIBRATION_FILE, FILE_NAME, MAX_BYTES
from vicort.runtime.safe_text import read_text
from vicort.runtime.work_folders import REPLACED

# keys that every version has written
KEYS = frozenset(
    {"schema_version", "backend", "precision", "model", "graphs", "files", "versions"}
    | {"build_command"}
)
AT_FDCWD = -100
NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2
# what renameat2 says where it, or a flag, is missing
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def why_foreign(folder: Path) -> str:
    """Why a folder is not provably an engine set of any version, whole or damaged, with nothing
    else in it; "" if it is one. Raises OSError if it cannot be read."""
    if folder.is_symlink() and folder.is_dir():
        return f"is a link to {os.path.realpath(folder)}"
    content = None if folder.is_symlink() else manifest_content(folder)
    if content is None:
        return "is not an engine set"
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name not in content["files"] and entry.name not in (FILE_NAME, CALIBRATION_FILE):
            return f"holds {entry.name}, which is no part of the engine set in it,"
        if not entry.is_file(follow_symlinks=False):
            return f"holds {entry.name}, which is not a plain file,"
    return ""


def manifest_content(folder: Path) -> dict[str, Any] | None:
    """The manifest of an engine set of any version; None for another folder."""
    path = folder / FILE_NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would never end
            return None
        content = json.loads(read_text(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        return None
    schema, command = content["schema_version"], content["build_command"]
    named = isinstance(schema, int) and isinstance(command, str) and "vicort" in command
    tables = isinstance(content["files"], dict) and isinstance(content["versions"], dict)
    return content if named and tables else None


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError unless `folder` is missing, empty, or an engine set that vicort made."""
    try:
        found = folder.lstat()
        empty = stat.S_ISDIR(found.st_mode) and not any(folder.iterdir())
        why = "" if empty else why_foreign(folder)
        mounted = os.path.ismount(folder)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"--out {folder} cannot be written ({reason}): name a folder elsewhere"
        ) from error
    if mounted and not why:
        raise ConfigError(
            f"--out {folder} is a mount point, which cannot be replaced: name a folder in it"
        )
    if why:
        raise ConfigError(
            f"--out {folder} {why} and is not overwritten: name a new folder, or remove it"
        )


def publish(built: Path, folder: Path) -> None:
    """Move a complete engine set to `folder`, on the same file system. An older set there is
    exchanged in one step, so that at every moment one of the two is there, and then removed.

    Raises ConfigError, and leaves `folder` as it is, if something else is there.
    """
    check_replaceable(folder)
    try:
        while not (_moved(built, folder) or _exchanged(built, folder)):
            pass  # another build came or went in between
    except OSError as error:
        raise ConfigError(
            f"the new set cannot be moved to {folder} ({error.strerror}): name a folder elsewhere "
            "with --out"
        ) from error


def _moved(built: Path, folder: Path) -> bool:
    """Moves it where nothing is; returns whether it did."""
    try:
        if not _renameat2(built, folder, NO_REPLACE):
            if os.path.lexists(folder):
                return False
            built.rename(folder)
    except FileExistsError:
        return False
    return True


def _exchanged(built: Path, folder: Path) -> bool:
    """Puts it in the place of an older set; returns whether one was there."""
    try:
        if not _renameat2(built, folder, EXCHANGE):
            _move_away(built, folder)
            return True
    except FileNotFoundError:
        return False
    if _is_foreign(built):  # it changed after it was looked at
        _renameat2(built, folder, EXCHANGE)
        check_replaceable(folder)
    _remove_old(built)
    return True


def _move_away(built: Path, folder: Path) -> None:
    """Where two folders cannot be exchanged in one step. The older set lies in the work folder for
    a moment, from where it is put back if the build is killed."""
    old = built.parent / REPLACED / folder.name
    old.parent.mkdir(exist_ok=True)
    folder.rename(old)
    try:
        if _is_foreign(old):
            raise FileExistsError(errno.EEXIST, "it changed meanwhile", str(folder))
        built.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    _remove_old(old)
    with suppress(OSError):
        old.parent.rmdir()


def _is_foreign(folder: Path) -> bool:
    return not folder.is_dir() or (any(folder.iterdir()) and bool(why_foreign(folder)))


def _remove_old(folder: Path) -> None:
    """What cannot be removed goes, or stays, with the work folder: the new set stands."""
    with suppress(OSError, ConfigError):
        remove_set(folder) if any(folder.iterdir()) else folder.rmdir()


def remove_set(folder: Path) -> None:
    """Remove an engine set: the files that its manifest lists, then the manifest, and the folder.

    Raises ConfigError, and removes nothing, if it is not provably one, and OSError.
    """
    if why := why_foreign(folder):
        raise ConfigError(f"{folder} {why}: it is not removed")
    for entry in list(os.scandir(folder)):
        if entry.name != FILE_NAME:
            os.unlink(entry.path)
    (folder / FILE_NAME).unlink()
    folder.rmdir()


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Returns False where the system has no such call. Raises OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(new))
