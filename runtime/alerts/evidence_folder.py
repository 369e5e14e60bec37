"""The folder of pictures and clips that alerts leave, within a budget of bytes."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from vicort.runtime.errors import ConfigError
from vicort.runtime.written_files import write_file

OWN = re.compile(r"\d{8}T\d{6}Z-[\w-]{3,129}-[0-9a-f]{8}\.(jpg|mp4)")


class EvidenceFolder:
    """Thread-safe. Beyond its budget the oldest of its own files are removed; other files in the
    folder are never touched. What is made here is for the owner of the process alone."""

    def __init__(self, path: Path, max_mb: float) -> None:
        """max_mb: MB of 1e6 bytes. Raises ConfigError if the folder cannot be made."""
        self.path = path
        self.removed = 0  # files
        self._max_bytes = int(max_mb * 1e6)
        self._lock = threading.Lock()
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the evidence folder {path} cannot be made ({error.strerror}): name one with the "
                "key evidence of the alert file"
            ) from error

    def name(self, stream: str, alert: str, key: str, suffix: str) -> Path:
        """A file of this folder for one event. suffix: jpg or mp4."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return self.path / f"{now}-{stream}-{alert}-{key[:8]}.{suffix}"

    def write(self, path: Path, content: bytes) -> None:
        """Write a whole file, and remove the oldest ones that no longer fit. Raises ConfigError."""
        write_file(path, content, "evidence", private=True)
        self.tidy()

    def tidy(self) -> None:
        """Remove the oldest files beyond the budget, but never the newest one."""
        with self._lock:
            found = []
            for file in self.path.iterdir():
                with suppress(OSError):
                    if OWN.fullmatch(file.name):
                        status = file.lstat()
                        found.append((status.st_mtime_ns, file.name, status.st_size))
            left = sum(size for _, _, size in found)
            for _, name, size in sorted(found)[:-1]:
                if left <= self._max_bytes:
                    return
                with suppress(OSError):
                    (self.path / name).unlink()
                    self.removed += 1
                left -= size
