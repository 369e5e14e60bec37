"""Opens and reads one source in a decoder process, and sends its frames."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from contextlib import suppress
from fractions import Fraction
from functools import partial
from typing import Any, NoReturn

from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources.container import ContainerSource
from vicort.runtime.sources.decoder_link import Link, LinkClosed
from vicort.runtime.sources.decoder_sandbox import enter_sandbox, limit_memory, limit_time
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.opening import NAMES_IN_STDIN, names_in_stdin, open_here
from vicort.runtime.sources.picture_sender import PictureSender, predictor
from vicort.runtime.sources.redirect_guard import guarded
from vicort.runtime.sources.sound import send_sound
from vicort.runtime.sources.source import Source

LISTENING_SECONDS = 60.0  # for the program to read why its source ended
MAX_LINE = 8_000  # characters of an error or a warning


def work(link: Link, request: dict[str, Any], files: list[int]) -> None:
    """Serve one source until it ends or nobody listens. request: as `IsolatedSource` makes it.
    files: the file that becomes stdin, if the source needs one, and the pipe for its sound, if that
    is asked for."""
    try:
        _Worker(link, request).run(files)
    except LinkClosed as error:
        with suppress(LinkClosed):  # the program has closed it, or something went wrong on it
            link.send("failed", "other", f"its link to the program broke ({error})", "")


class _Worker:
    def __init__(self, link: Link, request: dict[str, Any]) -> None:
        self._link = link
        self._request = request
        self._limits = Limits(**request["limits"])
        self._stopped: str | None = None  # why reading ended early

    def run(self, files: list[int]) -> None:
        failure = self._failure_of(self._serve, files)
        self._link.send("failed", *failure) if failure else self._link.send("end", self._stopped)
        while True:  # a link that is closed before all is read would lose what was sent
            self._link.receive()

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
        pipe = files.pop() if self._request["sound"] else None
        if files:
            os.dup2(files[0], 0)
            os.close(files[0])
        if files and not self._request["passed"]:
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 (the one before knows another file)
        os.chdir(self._request["folder"])
        self._forward_log()
        limit_memory(self._limits.decoding_bytes)
        self._rearm()
        missing = enter_sandbox(network=self._request["network"], devices=self._request["devices"])
        if missing:
            self._tell(logging.WARNING, f"the decoder process has fewer limits here: {missing}")
        with guarded(self._request["spec"], self._refuse), self._opened() as source:
            if pipe is not None:
                send_sound(source, pipe, partial(self._link.send, "sound"), self._rearm)
                return
            ahead = bool(self._request.get("ahead")) and isinstance(source, ContainerSource)
            self._describe(source, ahead)
            (_, *expected), _ = self._link.receive()  # "read"
            sender = PictureSender(self._link, self._rearm)
            if ahead and isinstance(source, ContainerSource):
                # motion depends on which pictures are taken, so that nothing is sent early
                early = expected and not self._request["motion"]
                sender.send_ahead(source, predictor(*expected) if early else None)
            else:
                sender.send_one_by_one(source)
            self._stopped = getattr(source, "stopped", None)

    def _refuse(self, error: SourceError) -> NoReturn:
        """Called within FFmpeg, which would go on if this returned."""
        self._link.send("failed", "source", _line(error), _line(error.brief))
        while self._link.ready(LISTENING_SECONDS):  # what was sent is lost once the link is closed
            self._link.receive()
        os._exit(0)

    def _rearm(self) -> None:
        limit_time(self._limits.seconds)

    def _opened(self) -> Source:
        wanted = self._request
        return open_here(
            names_in_stdin() if wanted["spec"] == NAMES_IN_STDIN else wanted["spec"],
            stream=wanted["stream"],
            live=wanted["live"],
            image_fps=Fraction(*wanted["image_fps"]),
            warn=lambda line: self._link.send("warning", _line(line)),
            threads=wanted["threads"],
            rtsp_transport=wanted["rtsp_transport"],
            patience=Patience(*wanted["timeouts"]),
            limits=self._limits,
            motion=wanted["motion"],
            passed=wanted["passed"],
            input_format=wanted["input_format"],
        )

    def _describe(self, source: Source, ahead: bool) -> None:
        length = source.duration
        self._link.send(
            "opened",
            source.name,
            bool(source.live),
            source.frames_total,
            None if length is None else [length.numerator, length.denominator],
            bool(getattr(source, "untimed", False)),
            ahead,
        )

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
