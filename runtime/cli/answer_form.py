"""What answers may be, as command lines and JSON lines say it: choices, a regular expression, a
JSON schema or a grammar; and the report of their tokens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vicort.runtime.core import Constraint, Question
from vicort.runtime.errors import QuestionError
from vicort.runtime.language.constraints import (
    MAX_LOGPROBS,
    MAX_TEXT,
    check_constraint,
    check_logprobs,
)
from vicort.runtime.safe_text import read_text, shown

FORM_KEYS = ("choices", "regex", "json_schema", "lark", "logprobs")
OPTIONS = ("choices", "regex", "json_schema", "grammar")


@dataclass(frozen=True)
class AnswerForm:
    """What is asked of answers whose questions do not say it themselves."""

    constraint: Constraint | None = None
    logprobs: int | None = None

    def fill(self, question: Question) -> Question:
        constraint = question.constraint or self.constraint
        has_choices = constraint is not None and bool(constraint.choices)
        default = None if has_choices else self.logprobs
        logprobs = default if question.logprobs is None else question.logprobs
        return replace(question, constraint=constraint, logprobs=logprobs)


FREE_TEXT = AnswerForm()


def add_form_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--choices",
        metavar="TEXT,TEXT",
        help="answers are one of these texts, and say how probable each is, such as yes,no",
    )
    group.add_argument(
        "--regex",
        metavar="R",
        help="answers match this regular expression, in the syntax of Rust's regex crate",
    )
    group.add_argument(
        "--json-schema",
        type=Path,
        metavar="FILE",
        help="answers are JSON that obeys the schema in this file",
    )
    group.add_argument(
        "--grammar",
        type=Path,
        metavar="FILE",
        help="answers are texts of the Lark grammar in this file",
    )
    group.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="report the log-probability of each token of an answer, and of the K most probable "
        f"ones in its place, 0 to {MAX_LOGPROBS}; JSONL shows them",
    )


def read_form(typed: argparse.Namespace) -> AnswerForm:
    """What the options ask of all questions that do not say it themselves. Raises QuestionError."""
    given = [name for name in OPTIONS if getattr(typed, name) is not None]
    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise QuestionError(f"{first} and {second} are given: give one of them")
    constraint = None
    if typed.choices is not None:
        constraint = Constraint(tuple(part.strip() for part in typed.choices.split(",")))
    elif typed.regex is not None:
        constraint = Constraint(regex=typed.regex)
    elif typed.json_schema is not None:
        constraint = Constraint(json_schema=_content(typed.json_schema, "--json-schema"))
    elif typed.grammar is not None:
        constraint = Constraint(lark=_content(typed.grammar, "--grammar"))
    return _checked(AnswerForm(constraint, typed.logprobs))


def parse_form(content: Mapping[str, Any], source_name: str) -> AnswerForm:
    """Of one question in a JSON line, whose numbers are whole or Fractions. Raises QuestionError,
    whose text begins with source_name."""
    rules = {key: content.get(key) for key in FORM_KEYS if key != "logprobs"}
    if all(rule is None for rule in rules.values()) and content.get("logprobs") is None:
        return FREE_TEXT
    constraint, choices, schema = None, rules.pop("choices"), rules.pop("json_schema")
    try:
        if choices is not None and not isinstance(choices, list):
            raise QuestionError(f"choices {shown(choices)}: give a list of texts")
        if schema is not None:
            if not isinstance(schema, dict):
                raise QuestionError(
                    f"json_schema {shown(schema)}: give a schema, which is an object"
                )
            rules["json_schema"] = json.dumps(schema, default=_number)
        if choices is not None or any(rule is not None for rule in rules.values()):
            constraint = Constraint(tuple(choices or ()), **rules)
        return _checked(AnswerForm(constraint, content.get("logprobs")))
    except QuestionError as error:
        raise QuestionError(f"{source_name}: {error}") from error


def _checked(form: AnswerForm) -> AnswerForm:
    """Raises QuestionError for what no model can be asked."""
    if form.constraint is not None:
        check_constraint(form.constraint)
    check_logprobs(Question("", constraint=form.constraint, logprobs=form.logprobs))
    return form


def _content(path: Path, option: str) -> str:
    try:
        return read_text(path, 4 * MAX_TEXT, "utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise QuestionError(
            f"{option} {path} cannot be read ({reason}): give a text file"
        ) from error


def _number(value: Any) -> float:
    if isinstance(value, Fraction):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no number")
