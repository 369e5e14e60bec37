"""The options of vicort-run that ask."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from vicort.runtime.change_asker import SHOWS_CHANGES
from vicort.runtime.cli.answer_form import AnswerForm
from vicort.runtime.cli.moments import Moment, parse_moment
from vicort.runtime.cli.questions import (
    checked_words,
    limited,
    parse_ask,
    read_questions,
    with_ids,
)
from vicort.runtime.cli.recurring import (
    UNTIL_PROBABILITY,
    UNTIL_SECONDS,
    RecurringQuestion,
)
from vicort.runtime.core import Question, Sampling
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.sources.opening import STDIN


def add_question_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar='"[@SECONDS] QUESTION"',
        help="ask at this stream time, or at the end if no time is given; repeatable",
    )
    group.add_argument(
        "--read-since",
        metavar="TIME",
        help="questions of --ask read nothing that was seen before: seconds of the stream, H:MM:SS "
        "of a file, or of a live source the time of day (10:05) or 2026-11-30T10:05",
    )
    group.add_argument(
        "--read-until",
        metavar="TIME",
        help="questions of --ask read nothing that was seen after, TIME as above",
    )
    group.add_argument(
        "--questions",
        type=Path,
        metavar="FILE.jsonl|-",
        help='read questions from a file with lines of {"at": seconds|null, "question": "…", '
        '"id": "…", "since": TIME, "until": TIME}, or from stdin (-) while the stream runs',
    )
    group.add_argument(
        "--every",
        action="append",
        default=[],
        nargs=2,
        metavar=("SECONDS", "QUESTION"),
        help="ask again every SECONDS of the stream; repeatable",
    )
    group.add_argument(
        "--at-changes",
        action="append",
        default=[],
        metavar="QUESTION",
        help="ask again whenever the scene changes, with a system that drops tokens, such as "
        f"{SHOWS_CHANGES}; `changes` of the system says what a change is; repeatable",
    )
    group.add_argument(
        "--until",
        action="append",
        default=[],
        metavar="QUESTION",
        help=f"ask every {UNTIL_SECONDS} s until the answer is yes, then end the run",
    )
    group.add_argument(
        "--until-probability",
        type=float,
        default=UNTIL_PROBABILITY,
        metavar="P",
        help="probability from 0 to 1 that the model must give its yes to end the run (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--serve-socket",
        type=Path,
        metavar="PATH",
        help="accept questions on a Unix socket, with JSON lines in both directions",
    )


def read_asked(
    typed: argparse.Namespace, sampling: Sampling, form: AnswerForm
) -> tuple[Question, ...]:
    first, last = _range(typed)
    asked = [limited(parse_ask(text), first, last, "--ask") for text in typed.ask]
    if typed.questions and str(typed.questions) != STDIN:
        asked += read_questions(typed.questions)
    return with_ids([replace(form.fill(question), sampling=sampling) for question in asked])


def _range(typed: argparse.Namespace) -> tuple[Moment | None, Moment | None]:
    """The part of the stream that the questions of --ask are about."""
    given = {"--read-since": typed.read_since, "--read-until": typed.read_until}
    first, last = (
        None if text is None else parse_moment(text, option) for option, text in given.items()
    )
    if (first is not None or last is not None) and not typed.ask:
        option = next(option for option, text in given.items() if text is not None)
        raise ConfigError(
            f"{option} is about the questions of --ask, and none is given: ask one, or give since "
            "and until with each question of a file or socket"
        )
    return first, last


def read_recurring(
    typed: argparse.Namespace, sampling: Sampling, form: AnswerForm
) -> tuple[RecurringQuestion, ...]:
    if not 0 <= typed.until_probability <= 1:
        raise ConfigError(
            f"--until-probability {typed.until_probability:g} is no probability: give 0 (any yes) "
            "to 1"
        )
    found = []
    for number, (seconds, text) in enumerate(typed.every, 1):
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", seconds) or not Fraction(seconds):
            raise ConfigError(
                f"--every {seconds} {text!r}: give a number of seconds above 0 first, such as "
                f"`--every 10 {text!r}`"
            )
        found.append(
            RecurringQuestion(
                form.fill(
                    Question(_words(text, "--every"), None, f"every{number}", None, sampling)
                ),
                Fraction(seconds),
            )
        )
    if len(typed.until) > 1:
        raise ConfigError(
            f"--until is given {len(typed.until)} times: give one question, such as `--until 'is "
            "there a circle or a cross?'`"
        )
    for text in typed.until:
        found.append(
            RecurringQuestion(
                form.fill(Question(_words(text, "--until"), None, "until", None, sampling)),
                UNTIL_SECONDS,
                until_yes=True,
                least=typed.until_probability,
            )
        )
    return tuple(found)


def read_at_changes(
    typed: argparse.Namespace, sampling: Sampling, form: AnswerForm
) -> tuple[Question, ...]:
    return tuple(
        form.fill(Question(_words(text, "--at-changes"), None, f"change{number}", None, sampling))
        for number, text in enumerate(typed.at_changes, 1)
    )


def _words(text: str, flag: str) -> str:
    if not text.strip():
        raise QuestionError(
            f"{flag} {text!r} contains no question: give one, such as "
            f"`{flag} ... 'is there a circle?'`"
        )
    return checked_words(text.strip(), flag)
