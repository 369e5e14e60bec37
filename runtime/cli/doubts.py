"""Warns of answers that mean little: to words that the model cannot read, guesses, and none."""

from __future__ import annotations

from collections.abc import Callable

from vicort.runtime.alerts.alert_session import AlertSession
from vicort.runtime.core import Answer, Question
from vicort.runtime.safe_text import shown
from vicort.runtime.session import Session

MAX_QUESTIONS = 1000  # of which it is remembered that they were warned of


class Doubts:
    """Warns once for each question of one stream, however often it is asked. Used by one session,
    which gives events one at a time and may be asked from several threads."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._unread: set[str] = set()
        self._guessed: set[str] = set()
        self._empty: set[str] = set()

    def asked(self, session: Session | AlertSession, question: Question) -> None:
        """Warn if the model cannot read a word of the question."""
        if not _is_new(question.text, self._unread):
            return
        if words := session.unknown_words(question.text):
            self._warn(
                f"the model does not know {', '.join(map(shown, words))}, and reads "
                f"{shown(question.text)} without: its answer may mean nothing"
            )

    def answered(self, answer: Answer) -> None:
        """Warn if the model itself found its answer unlikely, or gave none."""
        if answer.empty == "ended-at-once" and _is_new(answer.question, self._empty):
            self._warn(
                f"the answer to {shown(answer.question)} is empty: the model ended it with its "
                f"first token (probability {answer.first_probability:.2f}), which it may do where "
                "the question, or the turns before it, are not like those of its training"
            )
        if answer.doubtful and _is_new(answer.question, self._guessed):
            self._warn(
                f"{shown(answer.text)} to {shown(answer.question)} is a guess: the model gave it a "
                f"probability of {answer.probability:.2f}"
            )


def _is_new(text: str, seen: set[str]) -> bool:
    if text in seen or len(seen) >= MAX_QUESTIONS:
        return False
    seen.add(text)
    return True
