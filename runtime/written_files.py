"""Files that vicort writes: each appears whole, under the name that was asked for, or not at all.

A file is written under a name that nobody can guess, created exclusively, and then renamed. What
the name stands for is replaced only if it is a regular file: no link is followed, and no FIFO,
socket, device or folder is replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vicort.runtime.entry_points import BEFORE_LEAVING
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import printable

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def check_target(path: Path | str, option: str = "") -> None:
    """Refuse early what `new_file` would refuse later. Nothing is left behind.

    option: that names the file, for the error. Raises ConfigError.
    """
    with _named(path, option), _folder(Path(path)) as folder:
        _check(folder, Path(path).name)
        partial, file = _create(folder)
        os.close(file)
        os.unlink(partial, dir_fd=folder)


@contextmanager
def new_file(path: Path | str, option: str = "", *, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write in this context. Without an exception it then replaces `path`, and
    keeps the permissions of a file that was there. private: a new one is for its owner alone.

    Raises ConfigError if it cannot be written, also when the disk is full.
    """
    name = Path(path).name
    with _named(path, option), _folder(Path(path)) as folder:
        mode = _check(folder, name)
        partial, number = _create(folder, 0o600 if private else 0o666)

        def remove() -> None:
            with suppress(OSError):
                os.unlink(partial, dir_fd=folder)

        BEFORE_LEAVING.append(remove)
        try:
            with os.fdopen(number, "wb") as file:
                if mode is not None:
                    os.fchmod(number, mode)
                yield file
            _check(folder, name)
            os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            remove()
            raise
        finally:
            BEFORE_LEAVING.remove(remove)


def write_file(
    path: Path | str, content: str | bytes, option: str = "", *, private: bool = False
) -> None:
    """Write a whole file, as `new_file` does; text as UTF-8. Raises ConfigError."""
    with new_file(path, option, private=private) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def appended(path: Path | str, option: str = "") -> Iterator[BinaryIO]:
    """The regular file `path`, opened for writing at its end; made if there is none. Raises
    ConfigError for anything else, links too."""
    with _named(path, option):
        # without waiting, if it is a FIFO
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags | os.O_CLOEXEC, 0o666), "ab") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EEXIST, "it is no regular file")
            yield file


@contextmanager
def _named(path: Path | str, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{option or 'the file'} {printable(str(path))} cannot be written ({reason}): name a "
            "file in a folder that exists and that you may write to"
        ) from error


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """The folder, held open: all names are looked up in this one."""
    number = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield number
    finally:
        os.close(number)


def _check(folder: int, name: str) -> int | None:
    """The permissions of the file of this name; None if there is none. Raises OSError if it may
    not be replaced."""
    if name in ("", "..", "."):
        raise OSError(errno.EISDIR, "it is a folder")
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise OSError(errno.EEXIST, f"it is {kind}")
    if not os.access(name, os.W_OK, dir_fd=folder):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(mode)


def _create(folder: int, mode: int = 0o666) -> tuple[str, int]:
    name = f".vicort-{secrets.token_hex(16)}"
    return name, os.open(name, EXCLUSIVE, mode, dir_fd=folder)
