"""The questions of a session that are not answered yet."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction
from functools import partial
from types import TracebackType
from typing import Any

from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.core import MAX_SECONDS, Answer, Question, exact_seconds
from vicort.runtime.errors import ConfigError, QuestionError, SessionClosed
from vicort.runtime.safe_text import is_whole, shown

MAX_OPEN_QUESTIONS = 10_000

Entry = tuple[Fraction, int, AskedQuestion]  # its time, and how many were asked before


class QuestionQueue:
    """Which questions wait for their time, which may be asked now, and which are being answered.

    It also holds the stream's time, because both decide together what is due. Every method is
    short and thread-safe, and none waits for an answer but `wait_ended`. A question of which the
    asker cancels the future while it waits is removed at once.
    """

    def __init__(self, limit: int = MAX_OPEN_QUESTIONS) -> None:
        """limit: questions that may be open at a time. Raises ConfigError unless it is at least
        1."""
        if not is_whole(limit) or limit < 1:
            raise ConfigError(f"max_questions {shown(limit)}: give a whole number of at least 1")
        self.now = Fraction(0)  # seconds, of the newest frame seen
        self._limit = limit
        self._finished = False
        self._closed = False
        self._failure: BaseException | None = None  # what the stream ended with
        self._trace: TracebackType | None = None  # of it
        self._numbers = itertools.count()
        self._times: list[Entry] = []  # in the order of their times
        self._last: dict[AskedQuestion, None] = {}  # asked at the end of the stream
        self._ready: deque[AskedQuestion] = deque()  # asked as soon as the stream allows it
        self._open: dict[AskedQuestion, Entry | None] = {}
        self._counted: set[AskedQuestion] = set()  # those that the limit counts
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Questions that are not answered yet."""
        return len(self._counted)

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def add_all(self, questions: Sequence[tuple[AskedQuestion, Future[Answer]]]) -> None:
        """Add these questions, all or none, with the futures of their askers, which fail at once if
        the stream has failed. Raises QuestionError if too many questions would be open,
        SessionClosed if the queue is closed."""
        with self._lock:
            if self._closed:
                raise closed()
            failure = self._failure
            if not failure:
                self._check_limit(len(questions))
                for asked, _ in questions:
                    self._add(asked)
        for asked, future in questions:
            if failure:
                asked.fail(failure.with_traceback(self._trace))  # which grows with each result()
                asked.ended.set()
            future.add_done_callback(partial(self._given_up, asked))

    def _check_limit(self, more: int) -> None:
        if len(self._counted) + more > self._limit:
            raise QuestionError(
                f"{len(self._counted)} questions wait for their answers, at most {self._limit} "
                "may: ask again when some are answered, or cancel some"
            )

    def _add(self, asked: AskedQuestion) -> None:
        at, entry = asked.question.at, None
        if self._finished or (at is not None and at <= self.now):
            self._ready.append(asked)
        elif at is None:
            self._last[asked] = None
        else:
            entry = (at, next(self._numbers), asked)
            insort(self._times, entry, key=_order)
        self._open[asked] = entry
        self._counted.add(asked)

    def advance(self, at: Fraction) -> list[AskedQuestion]:
        """Set the time; returns the questions that were due before it, in the order of their
        times."""
        with self._lock:
            self.now = max(self.now, at)
            return self._take(bisect_left(self._times, (at, -1), key=_order))

    def take_due(self) -> list[AskedQuestion]:
        """The questions that are due by now, in the order of their times."""
        with self._lock:
            return self._take(bisect_left(self._times, (self.now, float("inf")), key=_order))

    def take_ready(self) -> list[AskedQuestion]:
        """The questions that may be asked now, in the order in which they came. A time that has
        passed means now."""
        with self._lock:
            ready = list(self._ready)
            self._ready.clear()
            for asked in ready:
                if asked.question.at is not None and asked.question.at < self.now:
                    asked.requested = asked.question.at
                    asked.question = replace(asked.question, at=self.now)
            return ready

    def finish(self) -> list[AskedQuestion]:
        """The stream has ended: from here on every question is ready. Returns those that are left:
        first the ones that were to be asked at its end."""
        with self._lock:
            self._finished = True
            last = list(self._last)
            self._last.clear()
            return [*last, *self._take(len(self._times))]

    def make_room(self, asked: AskedQuestion) -> None:
        """This question's answer comes next: its asker may ask another one as soon as he has it."""
        with self._lock:
            self._counted.discard(asked)

    def end(self, asked: AskedQuestion) -> None:
        """Nothing is done for this question any more."""
        with self._lock:
            self._open.pop(asked, None)
            self._counted.discard(asked)
        asked.ended.set()

    def wait_ended(self) -> None:
        """Wait until the questions that are open now have ended."""
        with self._lock:
            before = list(self._open)
        for asked in before:
            asked.ended.wait()

    def fail(self, error: BaseException) -> None:
        """The stream has ended with this error: every open question fails with it, and so does each
        one that is added later. Calls after the first have no effect.

        A question that is being answered stays open until its work has ended.
        """
        with self._lock:
            if self._failure or self._closed:
                return
            self._failure, self._trace = error, error.__traceback__
            left = list(self._open)
            waited = self._drop_waiting()
        for asked in left:
            asked.fail(error)
            if asked in waited:
                self.end(asked)

    def close(self) -> None:
        """Fail every open question, and refuse new ones."""
        with self._lock:
            self._closed = True
            left = list(self._open)
            self._drop_waiting()
        for asked in left:
            asked.fail(SessionClosed("the session was closed before the answer: open a new one"))
            self.end(asked)

    def _drop_waiting(self) -> set[AskedQuestion]:
        """Returns those whose work had not begun."""
        waited = {asked for _, _, asked in self._times} | {*self._last, *self._ready}
        self._times.clear()
        self._last.clear()
        self._ready.clear()
        return waited

    def _take(self, count: int) -> list[AskedQuestion]:
        due = [asked for _, _, asked in self._times[:count]]
        del self._times[:count]
        for asked in due:
            self._open[asked] = None
        return due

    def _given_up(self, asked: AskedQuestion, future: Future[Any]) -> None:
        """Called when its future is done: if it was cancelled while it waited, remove it."""
        if not future.cancelled():
            return
        with self._lock:
            entry = self._open.get(asked)
            if entry is not None:
                del self._times[bisect_left(self._times, entry[:2], key=_order)]
            elif asked in self._last:
                del self._last[asked]
            else:
                return  # whoever takes it looks at whether it is wanted
        self.end(asked)


def _order(entry: Entry) -> tuple[Fraction, int]:
    return entry[:2]


def with_exact_times(question: Question) -> Question:
    """The question with exact times. Raises QuestionError for what is no time."""
    return replace(
        question,
        at=_exact(question.at, "time", "the end of the stream"),
        since=_exact(question.since, "since", "no limit"),
        until=_exact(question.until, "until", "no limit"),
    )


def _exact(time: Any, name: str, none: str) -> Fraction | None:
    """none: what None means."""
    if time is None:
        return None
    try:
        return exact_seconds(time)
    except (ValueError, ArithmeticError) as error:
        raise QuestionError(
            f"the question's {name} {shown(time)} is no number of seconds: give 0 to "
            f"{MAX_SECONDS}, or None for {none}"
        ) from error


def closed() -> SessionClosed:
    return SessionClosed("the session is closed: open a new one")
