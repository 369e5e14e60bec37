"""Routes questions that arrive while streams run to the streams that they are about."""

from __future__ import annotations

import codecs
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TextIO

from vicort.runtime.cli.answer_form import FREE_TEXT, AnswerForm
from vicort.runtime.cli.questions import MAX_LINE, Submit, parse_typed
from vicort.runtime.core import Answer, Sampling
from vicort.runtime.errors import QuestionError, SessionClosed
from vicort.runtime.redact import redact_url
from vicort.runtime.safe_text import shown

MAX_LINE_BYTES = 4 * MAX_LINE  # of any line of MAX_LINE characters


class QuestionRouter:
    """Passes each question to its source, or to all current sources if it names none.

    Thread-safe.
    """

    def __init__(self, sampling: Sampling, streams: int = 1, form: AnswerForm = FREE_TEXT) -> None:
        """streams: number of streams that will call `enter`. form: of answers whose questions do
        not say it."""
        self._sampling = sampling
        self._form = form
        self._missing = streams
        self.complete = threading.Event()  # set once every stream has entered
        self._streams: dict[str, Submit] = {}
        self._names: dict[str, str] = {}  # by label
        self._lock = threading.Lock()
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return len(self._streams)

    def enter(self, source: str, submit: Submit, name: str = "") -> None:
        """source: label in events, "" of the only source, which questions may call `name`."""
        with self._lock:
            self._streams[source] = submit
            self._names[source] = name
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
            self._form.fill(question),
            id=question.id or f"t{next(self._count)}",
            sampling=self._sampling,
        )
        with self._lock:  # held until submitted, so that no stream closes in between
            streams = self._streams
            if source is not None and source not in streams:
                source = self._label_of(source, line_name)
            if not streams:
                raise QuestionError(f"{line_name}: no source is running: ask while a stream runs")
            return {
                name: submit(question) for name, submit in streams.items() if source in (None, name)
            }

    def _label_of(self, source: str, line_name: str) -> str:
        """The label of the only source. Raises QuestionError if it has another name."""
        running = [self._names[label] or label for label in self._streams]
        if "" in self._streams and redact_url(source) in (*running, ""):
            return ""
        raise QuestionError(
            f"{line_name}: source {shown(redact_url(source))} is not running: the running sources "
            f"are {', '.join(filter(None, running)) or 'none'}"
        )


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
    warning.

    It reads the file's number, not the file: a thread that waits in a file holds its lock, and
    Python ends with an error when it closes such a file.
    """

    def __init__(self, file: TextIO, router: QuestionRouter, warn: Callable[[str], None]) -> None:
        self._more = _reader(file)
        self._router = router
        self._warn = warn
        self.by_hand = file.isatty()
        self.ended = threading.Event()
        self._newest = time.monotonic()  # of the newest line
        threading.Thread(target=self._read, name="questions", daemon=True).start()

    def silent_since(self, moment: float) -> float:
        """Seconds without a line, at most since this moment of the monotonic clock."""
        return time.monotonic() - max(moment, self._newest)

    def _read(self) -> None:
        try:
            for number, line in enumerate(self._lines(), 1):
                self._newest = time.monotonic()
                self._router.complete.wait()
                self._take(line, f"stdin, line {number}")
        except OSError as error:
            self._warn(f"reading questions from stdin failed ({error.strerror}): send UTF-8 lines")
        finally:
            self.ended.set()

    def _lines(self) -> Iterator[bytes]:
        """Each line without its end. Of a line that is too long the end is lost."""
        start, skipping = b"", False
        while part := self._more():
            *whole, rest = (start + part).split(b"\n")
            for line in whole:
                if not skipping:
                    yield line
                skipping = False
            if len(rest) > MAX_LINE_BYTES:
                if not skipping:
                    yield rest
                rest, skipping = b"", True
            start = rest
        if start and not skipping:
            yield start

    def _take(self, line: bytes, line_name: str) -> None:
        try:
            text = line.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError:
            self._warn(f"{line_name} is not UTF-8: send UTF-8 lines")
            return
        if len(text) > MAX_LINE:
            self._warn(f"{line_name} has more than {MAX_LINE} characters: send a shorter question")
        elif text.strip():
            self._ask(text, line_name)

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


def _reader(file: TextIO) -> Callable[[], bytes]:
    """Gives the bytes that have come, or waits for some; none at the end."""
    try:
        number = file.fileno()
    except OSError:  # a StringIO
        return lambda: file.read(1 << 16).encode("utf-8", "surrogatepass")
    return lambda: os.read(number, 1 << 16)
