"""Parses questions from the command line, from JSONL files and from stdin."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from vicort.runtime.cli.answer_form import FORM_KEYS, parse_form
from vicort.runtime.cli.moments import MOMENT_FORMS, Moment, WrittenQuestion, parse_moment
from vicort.runtime.core import MAX_SECONDS, Answer, Question
from vicort.runtime.errors import QuestionError
from vicort.runtime.safe_text import is_text, lines_of, read_text, shown

ASK_FORM = '--ask "[@SECONDS] QUESTION", such as --ask "@12.5 what color was the circle?"'
LINE_FORM = '{"at": 12.5, "question": "what color was the circle?", "id": "a"}'
KEYS = ("at", "question", "id", "conversation", "since", "until", *FORM_KEYS)
MAX_LINE = 65_536  # bytes from a socket, characters elsewhere
MAX_FILE_BYTES = 64 << 20  # of a questions file
MAX_DIGITS = 40  # of a number of seconds
Submit = Callable[[Question], Future[Answer]]  # asks one stream


def parse_ask(text: str) -> Question:
    """Parse `[@SECONDS] QUESTION`. Without a time it is asked at the end. Raises QuestionError."""
    at, words = None, text.strip()
    if match := re.fullmatch(r"@(\S*)\s*(.*)", words, re.DOTALL):
        at, words = _seconds(match[1], f"--ask {text!r}", ASK_FORM), match[2]
    if not words:
        raise QuestionError(f"--ask {text!r} contains no question: give {ASK_FORM}")
    return Question(checked_words(words, "--ask"), at)


def read_questions(path: Path | str) -> list[Question]:
    """Read a JSONL file with one object per line: question, and optionally at (seconds), id,
    conversation, since and until (moments), choices (texts), regex, json_schema (an object), lark
    and logprobs.

    Raises QuestionError, which names the line, also for a file without a question.
    """
    try:
        lines = lines_of(read_text(path, MAX_FILE_BYTES, "utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(
            f"questions file {path} cannot be read "
            f"({getattr(error, 'strerror', None) or 'not UTF-8'}): give a JSONL file"
        ) from error
    questions = [
        _parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not questions:
        raise QuestionError(f"questions file {path} contains no question: give {LINE_FORM}")
    return questions


def parse_typed(line: str, source_name: str) -> Question:
    """Parse a question that arrives while the stream runs: a JSON line or plain text. Without a
    time it is asked now.

    source_name: start of the error text. Raises QuestionError.
    """
    if line.lstrip().startswith("{"):
        return _parse_line(line, source_name)
    if not line.strip():
        raise QuestionError(f"{source_name} contains no question: give {LINE_FORM}, or plain text")
    return Question(checked_words(line.strip(), source_name))


def checked_words(text: str, source_name: str) -> str:
    """Returns the text. Raises QuestionError if it cannot be encoded as UTF-8."""
    if not is_text(text):
        raise QuestionError(
            f"{source_name} {shown(text)} is not valid UTF-8 (it has a lone surrogate): send UTF-8"
        )
    return text


def with_ids(questions: Sequence[Question]) -> tuple[Question, ...]:
    """Name questions without an id q1, q2, … by their position. Raises QuestionError if two ids
    are equal."""
    named = [
        question if question.id else replace(question, id=f"q{number}")
        for number, question in enumerate(questions, 1)
    ]
    counts = Counter(question.id for question in named)
    if twice := {id for id, count in counts.items() if count > 1}:
        raise QuestionError(
            f"two questions have the id {shown(min(twice))}: give each a different id (questions "
            "without an id are named q1, q2, … by their position)"
        )
    return tuple(named)


def _parse_line(line: str, source_name: str) -> Question:
    if len(line) > MAX_LINE:
        raise QuestionError(
            f"{source_name} has more than {MAX_LINE} characters: give a shorter question"
        )
    try:
        content: Any = json.loads(
            line,
            parse_float=_fraction,
            parse_int=_whole,
            parse_constant=_refuse_constant,
            object_pairs_hook=_distinct,
        )
    except ValueError as error:
        raise QuestionError(f"{source_name} is not JSON ({error}): give {LINE_FORM}") from error
    except RecursionError as error:
        raise QuestionError(f"{source_name} is nested too deeply: give {LINE_FORM}") from error
    if not isinstance(content, dict):
        raise QuestionError(f"{source_name} is not a JSON object: give {LINE_FORM}")
    if unknown := sorted(set(content) - set(KEYS)):
        raise QuestionError(
            f"{source_name} has the unknown key {shown(unknown[0])}: the keys are {', '.join(KEYS)}"
        )
    for key in ("question", "id", "conversation"):
        if not isinstance(content.get(key, ""), str):
            raise QuestionError(
                f"{source_name}: {key} is {shown(content[key])}, not a string: give {LINE_FORM}"
            )
        checked_words(content.get(key, ""), f"{source_name}: {key}")
    if not content.get("question", "").strip():
        raise QuestionError(f"{source_name} contains no question: give {LINE_FORM}")
    at = content.get("at")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | Fraction)):
        raise QuestionError(
            f"{source_name}: at is {shown(at)}, not a number of seconds or null: give {LINE_FORM}"
        )
    if at is not None and at < 0:
        raise QuestionError(
            f"{source_name}: at is {_plain(at)}, before the start of the stream: give 0 or more "
            "seconds, or null for the end of the stream"
        )
    if at is not None and at > MAX_SECONDS:
        raise QuestionError(
            f"{source_name}: at is {_plain(at)}: give at most {MAX_SECONDS} seconds, or null for "
            "the end of the stream"
        )
    form = parse_form(content, source_name)
    question = Question(
        content["question"].strip(),
        None if at is None else Fraction(at),
        content.get("id", ""),
        content.get("conversation"),
        constraint=form.constraint,
        logprobs=form.logprobs,
    )
    first, last = (_moment(content.get(key), f"{source_name}: {key}") for key in ("since", "until"))
    return limited(question, first, last, source_name)


def _moment(written: Any, source_name: str) -> Moment | None:
    """written: seconds, or a text in one of MOMENT_FORMS. Raises QuestionError."""
    if written is None:
        return None
    if isinstance(written, str):
        return parse_moment(written, source_name)
    if isinstance(written, bool) or not isinstance(written, int | Fraction):
        raise QuestionError(f"{source_name} {shown(written)} is no moment: give {MOMENT_FORMS}")
    if not 0 <= written <= MAX_SECONDS:
        raise QuestionError(
            f"{source_name} is {_plain(written)}: give 0 to {MAX_SECONDS} seconds of the stream"
        )
    return Fraction(written)


def limited(
    question: Question, first: Moment | None, last: Moment | None, source_name: str
) -> Question:
    """The question about the part of the stream from one moment to another. Raises QuestionError if
    it ends before it begins, as far as that is known without the source."""
    if first is None and last is None:
        return question
    if isinstance(first, Fraction) and isinstance(last, Fraction) and first > last:
        raise QuestionError(
            f"{source_name}: since {_plain(first)} is after until {_plain(last)}: give the earlier "
            "moment as since"
        )
    return WrittenQuestion(**vars(question) | {"first": first, "last": last})


def _seconds(text: str, source_name: str, form: str) -> Fraction:
    if not re.fullmatch(r"[+-]?(\d{1,12}(\.\d{0,12})?|\.\d{1,12})", text):
        raise QuestionError(f"{source_name}: {text!r} is not a number of seconds: give {form}")
    if text.startswith("-"):
        raise QuestionError(
            f"{source_name}: {text} s is before the start of the stream: give 0 or more seconds, "
            "or no time to ask at the end"
        )
    return Fraction(text)


def _plain(number: int | Fraction) -> str:
    try:
        return f"{float(number):g}"
    except OverflowError:
        return "a huge number"


def _fraction(text: str) -> Fraction:
    """Parse a number exactly. The limit on digits rejects numbers like 1e999999999, which would
    take a gigabyte."""
    exponent = text.lower().partition("e")[2]
    if len(text) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        raise ValueError(f"{shown(text)} is written out in more than {MAX_DIGITS} digits")
    return Fraction(text)


def _whole(text: str) -> int:
    return int(_fraction(text))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys come once each. Raises ValueError."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} comes twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
