"""Opens and reads one source in a decoder process, and sends its frames."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from vicort.runtime.core import Frame
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources.decoder_link import Link, LinkClosed
from vicort.runtime.sources.decoder_sandbox import enter_sandbox, limit_memory, limit_time
from vicort.runtime.sources.frame_ring import FrameRing, new_ring, slot_bytes
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.opening import open_here
from vicort.runtime.sources.source import Source

MAX_LINE = 8_000  # characters of an error or a warning


def work(link: Link, request: dict[str, Any], files: list[int]) -> None:
    """Serve one source until it ends or nobody listens. request: as `IsolatedSource` makes it.
    files: stdin, if the source is that."""
    try:
        _Worker(link, request).run(files)
    except LinkClosed:
        return


class _Worker:
    def __init__(self, link: Link, request: dict[str, Any]) -> None:
        self._link = link
        self._request = request
        self._limits = Limits(**request["limits"])
        self._slot = 0  # of the next wanted picture
        self._awaited = False  # whether the program waits for a frame
        self._ring: FrameRing | None = None

    def run(self, files: list[int]) -> None:
        failure = self._failure_of(self._serve, files)
        if failure:
            self._link.send("failed", *failure)

    def _failure_of(self, act: Any, *values: Any) -> tuple[str, str, str] | None:
        try:
            act(*values)
        except LinkClosed:
            raise
        except TruncatedSource as error:
            return "truncated", _line(error), _line(error.brief)
        except SourceError as error:
            if _is_for_memory(error):
                return "memory", "", ""
            return "source", _line(error), _line(error.brief)
        except MemoryError:
            return "memory", "", ""
        except BaseException as error:  # noqa: BLE001 - reported where the source is read
            self._tell(logging.DEBUG, traceback.format_exc())
            return "other", f"{type(error).__name__}: {_line(error)}", ""
        return None

    def _serve(self, files: list[int]) -> None:
        if files:
            os.dup2(files[0], 0)
            os.close(files[0])
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 (the one before knows another file)
        os.chdir(self._request["folder"])
        self._forward_log()
        limit_memory(self._limits.decoding_bytes)
        limit_time(self._limits.seconds)
        missing = enter_sandbox(network=self._request["network"], devices=self._request["devices"])
        if missing:
            self._tell(logging.WARNING, f"the decoder process has fewer limits here: {missing}")
        with self._opened() as source:
            self._describe(source)
            self._link.receive()  # "read"
            for frame in self._frames(source):
                self._send(frame)
            self._link.send("end", getattr(source, "stopped", None))

    def _opened(self) -> Source:
        wanted = self._request
        return open_here(
            wanted["spec"],
            stream=wanted["stream"],
            live=wanted["live"],
            image_fps=Fraction(*wanted["image_fps"]),
            warn=lambda line: self._link.send("warning", _line(line)),
            threads=wanted["threads"],
            rtsp_transport=wanted["rtsp_transport"],
            patience=Patience(*wanted["timeouts"]),
            limits=self._limits,
            motion=wanted["motion"],
        )

    def _describe(self, source: Source) -> None:
        length = source.duration
        self._link.send(
            "opened",
            source.name,
            bool(source.live),
            source.frames_total,
            None if length is None else [length.numerator, length.denominator],
            bool(getattr(source, "untimed", False)),
        )

    def _frames(self, source: Source) -> Iterator[Frame]:
        return source.frames(self._wants)

    def _wants(self, time: Fraction) -> bool:
        if self._awaited:  # the picture was wanted, and cannot be used
            self._link.send("none")
        self._link.send("times", [time.numerator, time.denominator])
        (_, skipped, self._slot), _ = self._link.receive()
        limit_time(self._limits.seconds)
        self._awaited = not skipped
        return self._awaited

    def _send(self, frame: Frame) -> None:
        cells = frame.motion.cells.size if frame.motion and frame.motion.cells is not None else 0
        size = slot_bytes(*frame.image.shape[:2], cells)
        if self._ring is None or self._ring.size < size:
            self._ring = None
            self._ring, file = new_ring(size)
            self._link.send("ring", self._ring.size, self._ring.slots, files=[file])
            os.close(file)
            self._slot = 0
        written = self._ring.write(self._slot, frame.image, frame.motion)
        self._awaited = False
        self._link.send("frame", frame.index, self._slot, *written)

    def _forward_log(self) -> None:
        root = logging.getLogger("vicort")
        root.setLevel(self._request["log_level"])
        root.addHandler(_Forwarder(self._tell))

    def _tell(self, level: int, line: str, name: str = __name__) -> None:
        self._link.send("log", level, name, line[-MAX_LINE:])


class _Forwarder(logging.Handler):
    """Sends log records to the program."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell_program = tell

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._tell_program(record.levelno, record.getMessage(), record.name)
        except LinkClosed:
            return


def _is_for_memory(error: BaseException | None) -> bool:
    """Whether memory was refused where the error began."""
    while error:
        if isinstance(error, MemoryError) or os.strerror(errno.ENOMEM) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(text: object) -> str:
    return str(text)[:MAX_LINE]
