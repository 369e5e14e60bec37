"""Where questions that come while streams run are taken, and passed on to the streams they are
about."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TextIO

from vicort.runtime.cli.questions import MAX_LINE, parse_typed
from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import QuestionError
from vicort.runtime.safe_text import shown

Ask = Callable[[Question], Future]  # of one stream; a question without a time is asked now


class QuestionRouter:
    """Thread-safe. Streams come and go; a question without a `source` goes to all that are
    there."""

    def __init__(self, sampling: Sampling, streams: int = 1) -> None:
        """streams: how many will come."""
        self._sampling, self._to_come = sampling, streams
        self.complete = threading.Event()  # all have come, and some may have left
        self._streams: dict[str, Ask] = {}
        self._lock = threading.Lock()
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return len(self._streams)

    def enter(self, source: str, ask: Ask) -> None:
        with self._lock:
            self._streams[source] = ask
            self._expect_one_less()

    def leave(self, source: str) -> None:
        """Whether it has come or not."""
        with self._lock:
            if self._streams.pop(source, None) is None:
                self._expect_one_less()

    def _expect_one_less(self) -> None:
        self._to_come -= 1
        if self._to_come <= 0:
            self.complete.set()

    def ask(self, line: str, where: str) -> dict[str, Future]:
        """One line that was typed or sent -> the answers to come, by source. Raises
        QuestionError."""
        try:
            source, line = _addressed(line)
            question = parse_typed(line, where)
        except RecursionError as error:
            raise QuestionError(f"{where} is nested too deep: send one flat object") from error
        question = replace(
            question, id=question.id or f"t{next(self._count)}", sampling=self._sampling
        )
        with self._lock:  # held to the end, so that no stream is closed under a question
            streams = self._streams
            if source is not None and source not in streams:
                raise QuestionError(
                    f"{where}: no source {shown(source)} is being watched: the sources are "
                    f"{', '.join(streams) or 'gone'}"
                )
            if not streams:
                raise QuestionError(
                    f"{where}: nothing is being watched yet, or any more: ask while a stream runs"
                )
            return {name: ask(question) for name, ask in streams.items() if source in (None, name)}


def _addressed(line: str) -> tuple[str | None, str]:
    """The `source` of a JSON line, and the line without it; what is no JSON object is left to the
    parser."""
    try:
        content: Any = json.loads(line)
    except ValueError:
        return None, line
    if not isinstance(content, dict) or not isinstance(content.get("source"), str):
        return None, line
    source = content.pop("source")
    return source, json.dumps(content)


class TypedQuestions:
    """Questions from a file that is still being written, such as stdin: a line each. A bad one
    costs a warning, no more."""

    def __init__(self, file: TextIO, router: QuestionRouter, warn: Callable[[str], None]) -> None:
        self._file = file
        self._router = router
        self._warn = warn
        self.ended = threading.Event()
        threading.Thread(target=self._read, name="questions", daemon=True).start()

    def _read(self) -> None:
        try:
            for number, line in enumerate(iter(self._next, ""), 1):
                self._router.complete.wait()
                if len(line) > MAX_LINE:
                    self._warn(
                        f"stdin, line {number} has more than {MAX_LINE} characters: send a "
                        "shorter question"
                    )
                elif line.strip():
                    self._take(line, f"stdin, line {number}")
        except (OSError, UnicodeDecodeError) as error:
            self._warn(f"no more questions are read from stdin ({error}): send UTF-8 lines")
        finally:
            self.ended.set()

    def _next(self) -> str:
        """The next line; of one that is too long, the part that shows it."""
        line = part = self._file.readline(MAX_LINE + 1)
        while len(part) > MAX_LINE and not part.endswith("\n"):
            part = self._file.readline(MAX_LINE + 1)
        return line

    def _take(self, line: str, where: str) -> None:
        try:
            self._router.ask(line, where)
        except QuestionError as error:
            self._warn(str(error))
