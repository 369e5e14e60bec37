"""Tries files one after another in a worker that has an engine set open."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from fuzzing.fuzz_child import Outcome
from fuzzing.fuzz_files import Kind

FILES = 500  # that a worker reads before another takes its place
START_SECONDS = 120.0


class EngineTrials:
    """One worker at a time; after a fault it is replaced."""

    def __init__(self, folder: Path, room: Path) -> None:
        """folder: an engine set. room: a folder for what the worker prints."""
        self._folder = folder
        self._noise = room / "worker-stderr"
        self._worker: subprocess.Popen[bytes] | None = None
        self._left = 0
        self._there = self._back = -1  # pipes to and from the worker

    def tried(self, path: Path, kind: Kind, *, seconds: float, max_bytes: int) -> Outcome:
        """Reads the file up to an answer. max_bytes: that the worker may take more than before."""
        if self._left == 0:
            self._replace()
        self._left -= 1
        os.write(self._there, f"{json.dumps([str(path), kind])}\n".encode())
        line = self._line(seconds)
        if line is None or line == b"":
            return self._ended(seconds, hung=line is None)
        report, took, own, decoder = json.loads(line)
        verdict, _, detail = report.partition(" ")
        noise = self._noise.read_text(errors="replace")
        self._noise.write_bytes(b"")
        peak = max(own, decoder)
        if noise:
            verdict, detail = "noise", f"on stderr: {noise}"
        elif own > max_bytes:
            verdict, detail = "memory", f"{own / 1e6:.0f} MB more in the program"
        if verdict not in ("answered", "refused"):
            self._left = 0
        return Outcome(verdict, detail, peak, took)

    def close(self) -> None:
        if self._worker:
            self._worker.kill()
            self._worker.wait()
            os.close(self._there)
            os.close(self._back)
        self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _replace(self) -> None:
        self.close()
        reading, self._there = os.pipe()
        self._back, writing = os.pipe()
        command = [sys.executable, "-m", "fuzzing.engine_worker", str(self._folder)]
        with self._noise.open("ab", buffering=0) as noise:
            noise.truncate(0)
            self._worker = subprocess.Popen(
                [*command, str(reading), str(writing)],
                pass_fds=(reading, writing),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=noise,
                stderr=noise,
            )
        os.close(reading)
        os.close(writing)
        self._left = FILES
        if not self._line(START_SECONDS):
            raise RuntimeError(f"the worker does not start: {self._noise.read_text()}")

    def _line(self, seconds: float) -> bytes | None:
        """The next line of the worker; b"" if it has ended, None if nothing comes in time."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._back], [], [], seconds)[0]:
                return None
            piece = os.read(self._back, 1 << 16)
            if not piece:
                return b""
            line += piece
        return line

    def _ended(self, seconds: float, *, hung: bool) -> Outcome:
        self._left = 0
        if hung:
            return Outcome("hang", f"no end after {seconds:g} s", 0, seconds)
        assert self._worker
        code = self._worker.wait()
        return Outcome("crash", f"exit code {code}: {self._noise.read_text()[-2000:]}", 0)
