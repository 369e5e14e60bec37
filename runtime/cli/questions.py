"""Questions as the user writes them: on the command line, or a line each in a JSONL file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from vicort.runtime.core import Question
from vicort.runtime.errors import QuestionError
from vicort.runtime.safe_text import is_text, read_text, shown

ASK_FORM = '--ask "[@SECONDS] QUESTION", as --ask "@12.5 what color was the circle?"'
LINE_FORM = '{"at": 12.5, "question": "what color was the circle?", "id": "a"}'
KEYS = ("at", "question", "id", "conversation")
MAX_LINE = 65_536  # bytes
MAX_FILE_BYTES = 64 << 20  # of a questions file
MAX_SECONDS = 10**12  # 31,700 years
MAX_DIGITS = 40  # of a number of seconds


def parse_ask(text: str) -> Question:
    """`[@SECONDS] QUESTION`; without a time it is asked at the end. Raises QuestionError."""
    at, words = None, text.strip()
    if match := re.fullmatch(r"@(\S*)\s*(.*)", words, re.DOTALL):
        at, words = _seconds(match[1], f"--ask {text!r}", ASK_FORM), match[2]
    if not words:
        raise QuestionError(f"--ask {text!r} holds no question: give {ASK_FORM}")
    return Question(checked_words(words, "--ask"), at)


def read_questions(path: Path | str) -> list[Question]:
    """The questions of a JSONL file, one object a line: question, and if wanted at (seconds), id,
    conversation.

    Raises QuestionError, with the number of the line, for anything else.
    """
    try:
        lines = read_text(path, MAX_FILE_BYTES, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(
            f"questions file {path} cannot be read "
            f"({getattr(error, 'strerror', None) or 'not UTF-8'}): give a JSONL file"
        ) from error
    return [
        _parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def parse_typed(line: str, where: str) -> Question:
    """A question that comes while the stream runs: a line as in a JSONL file, or plain words.
    Without a time it is asked now.

    Raises QuestionError, which `where` begins.
    """
    if line.lstrip().startswith("{"):
        return _parse_line(line, where)
    if not line.strip():
        raise QuestionError(f"{where} holds no question: give {LINE_FORM}, or plain words")
    return Question(checked_words(line.strip(), where))


def checked_words(text: str, where: str) -> str:
    """The text, if a model can be asked it. Raises QuestionError, which `where` begins."""
    if not is_text(text):
        raise QuestionError(
            f"{where} {shown(text)} holds half a character (a lone surrogate): send UTF-8"
        )
    return text


def with_ids(questions: Sequence[Question]) -> tuple[Question, ...]:
    """Those without an id get q1, q2, … by their place. Raises QuestionError if two ids are the
    same."""
    named = [
        question if question.id else replace(question, id=f"q{place}")
        for place, question in enumerate(questions, 1)
    ]
    counts = Counter(question.id for question in named)
    if twice := {id for id, count in counts.items() if count > 1}:
        raise QuestionError(
            f"two questions have the id {shown(min(twice))}: give each its own (those without "
            "one get q1, q2, … by their place)"
        )
    return tuple(named)


def _parse_line(line: str, where: str) -> Question:
    if len(line) > MAX_LINE:
        raise QuestionError(f"{where} has more than {MAX_LINE} characters: give a shorter question")
    try:
        content: Any = json.loads(line, parse_float=_fraction, parse_constant=_refuse_constant)
    except ValueError as error:
        raise QuestionError(f"{where} is not JSON ({error}): give {LINE_FORM}") from error
    except RecursionError as error:
        raise QuestionError(f"{where} is nested too deep: give {LINE_FORM}") from error
    if not isinstance(content, dict):
        raise QuestionError(f"{where} is no JSON object: give {LINE_FORM}")
    if unknown := sorted(set(content) - set(KEYS)):
        raise QuestionError(
            f"{where} has the unknown key {shown(unknown[0])}: the keys are {', '.join(KEYS)}"
        )
    for key in ("question", "id", "conversation"):
        if not isinstance(content.get(key, ""), str):
            raise QuestionError(
                f"{where}: {key} is {shown(content[key])}, not a string: give {LINE_FORM}"
            )
        checked_words(content.get(key, ""), f"{where}: {key}")
    if not content.get("question", "").strip():
        raise QuestionError(f"{where} holds no question: give {LINE_FORM}")
    at = content.get("at")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | Fraction)):
        raise QuestionError(
            f"{where}: at is {shown(at)}, not a number of seconds or null: give {LINE_FORM}"
        )
    if at is not None and at < 0:
        raise QuestionError(
            f"{where}: at is {_plain(at)}, before the stream: give 0 or more seconds, or null "
            "for its end"
        )
    if at is not None and at > MAX_SECONDS:
        raise QuestionError(
            f"{where}: at is {_plain(at)}: give {MAX_SECONDS} seconds at most, or null for the "
            "end of the stream"
        )
    time = None if at is None else Fraction(at)
    return Question(
        content["question"].strip(), time, content.get("id", ""), content.get("conversation")
    )


def _seconds(text: str, where: str, form: str) -> Fraction:
    if not re.fullmatch(r"[+-]?(\d{1,12}(\.\d{0,12})?|\.\d{1,12})", text):
        raise QuestionError(f"{where}: {text!r} is not a number of seconds: give {form}")
    if text.startswith("-"):
        raise QuestionError(
            f"{where}: {text} s is before the stream: give 0 or more seconds, or no time to ask "
            "at the end"
        )
    return Fraction(text)


def _plain(number: int | Fraction) -> str:
    try:
        return f"{float(number):g}"
    except OverflowError:
        return "a huge number"


def _fraction(text: str) -> Fraction:
    """Exact; but 1e999999999 would be a number of a gigabyte."""
    exponent = text.lower().partition("e")[2]
    if len(text) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        raise ValueError(f"{shown(text)} has more than {MAX_DIGITS} digits")
    return Fraction(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
