"""Routes questions that arrive while streams run to the streams that they are about."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TextIO

from vicort.runtime.cli.questions import MAX_LINE, Submit, parse_typed
from vicort.runtime.core import Answer, Sampling
from vicort.runtime.errors import QuestionError, SessionClosed
from vicort.runtime.safe_text import shown


class QuestionRouter:
    """Passes each question to its source, or to all current sources if it names none.

    Thread-safe.
    """

    def __init__(self, sampling: Sampling, streams: int = 1) -> None:
        """streams: number of streams that will call `enter`."""
        self._sampling = sampling
        self._missing = streams
        self.complete = threading.Event()  # set once every stream has entered
        self._streams: dict[str, Submit] = {}
        self._lock = threading.Lock()
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return len(self._streams)

    def enter(self, source: str, submit: Submit) -> None:
        with self._lock:
            self._streams[source] = submit
            self._expect_one_less()

    def leave(self, source: str) -> None:
        """Remove a source. It counts as entered even if it never called `enter`."""
        with self._lock:
            if self._streams.pop(source, None) is None:
                self._expect_one_less()

    def _expect_one_less(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self.complete.set()

    def ask(self, line: str, line_name: str) -> dict[str, Future[Answer]]:
        """Ask the question in one line of text. Returns the future answers by source.

        line_name: names the line in errors. Raises QuestionError.
        """
        try:
            source, line = _addressed(line)
            question = parse_typed(line, line_name)
        except RecursionError as error:
            raise QuestionError(
                f"{line_name} is nested too deeply: send one flat object"
            ) from error
        question = replace(
            question, id=question.id or f"t{next(self._count)}", sampling=self._sampling
        )
        with self._lock:  # held until submitted, so that no stream closes in between
            streams = self._streams
            if source is not None and source not in streams:
                raise QuestionError(
                    f"{line_name}: source {shown(source)} is not running: the running sources are "
                    f"{', '.join(streams) or 'none'}"
                )
            if not streams:
                raise QuestionError(f"{line_name}: no source is running: ask while a stream runs")
            return {
                name: submit(question) for name, submit in streams.items() if source in (None, name)
            }


def _addressed(line: str) -> tuple[str | None, str]:
    """Split the `source` off a JSON line. Other lines are returned unchanged."""
    try:
        content: Any = json.loads(line)
    except ValueError:
        return None, line
    if not isinstance(content, dict) or not isinstance(content.get("source"), str):
        return None, line
    source = content.pop("source")
    return source, json.dumps(content)


class TypedQuestions:
    """Reads questions from stdin in a background thread, one per line. A bad line only causes a
    warning."""

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
                    self._ask(line, f"stdin, line {number}")
        except (OSError, UnicodeDecodeError) as error:
            self._warn(f"reading questions from stdin failed ({error}): send UTF-8 lines")
        finally:
            self.ended.set()

    def _next(self) -> str:
        """The next line. A line that is too long is cut to MAX_LINE + 1 characters."""
        line = part = self._file.readline(MAX_LINE + 1)
        while len(part) > MAX_LINE and not part.endswith("\n"):
            part = self._file.readline(MAX_LINE + 1)
        return line

    def _ask(self, line: str, line_name: str) -> None:
        try:
            answers = self._router.ask(line, line_name)
        except QuestionError as error:
            self._warn(str(error))
            return
        for answer in answers.values():
            answer.add_done_callback(lambda done: self._report(line_name, done))

    def _report(self, line_name: str, answer: Future[Answer]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if error and not isinstance(error, SessionClosed):
            self._warn(f"{line_name}: {error}")
