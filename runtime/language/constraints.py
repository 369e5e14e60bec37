"""What a question may ask of its answer, whatever the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vicort.runtime.core import Constraint, Question
from vicort.runtime.errors import QuestionError
from vicort.runtime.safe_text import brief, is_text, is_whole, shown

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_TEXT = 1 << 16  # characters of a constraint
MAX_CHOICES = 256
MAX_LOGPROBS = 20  # alternatives to a token that are reported
KINDS = {"regex": "regular expression", "json_schema": "JSON schema", "lark": "Lark grammar"}
GIVE_ONE = "give exactly one of choices, regex, json_schema and lark"
HINTS = {
    "regex": "give one in the syntax of Rust's regex crate, without look-around and references",
    "json_schema": "correct it, or leave out what cannot be enforced",
    "lark": "correct it; its syntax is Lark's, as llguidance reads it",
}
# JSON in one line: as Python's json.dumps writes it, or without spaces. White space without a limit
# would let a weak model write nothing else.
JSON_FORM: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}

Key = tuple[tuple[str, ...], str | None, str | None, str | None]


def check_constraint(constraint: Constraint) -> None:
    """Raises QuestionError for a constraint that no model's answer can have."""
    from llguidance import LLMatcher

    for kind, text in zip(KINDS, constraint_key(constraint)[1:], strict=True):
        if text is None:
            continue
        source = grammar_source(kind, text, joins_words=False)
        failed, said = LLMatcher.validate_grammar_with_warnings(source)
        if failed:
            raise refused(kind, text, reason_of(said[0]))


def constraint_key(constraint: Constraint) -> Key:
    """The constraint's fields, checked. Raises QuestionError."""
    if not isinstance(constraint, Constraint):
        raise QuestionError(
            f"the constraint is {shown(constraint)}: give vicort.runtime.Constraint(...), or None"
        )
    choices: Any = constraint.choices
    if not isinstance(choices, tuple):
        raise QuestionError(f"choices {shown(choices)}: give a tuple of texts, as ('yes', 'no')")
    texts = [getattr(constraint, kind) for kind in KINDS]
    given = [kind for kind, text in zip(KINDS, texts, strict=True) if text is not None]
    if len(given) + bool(choices) != 1:
        named = [*(["choices"] if choices else []), *given]
        found = f"has {' and '.join(named)}" if named else "is empty, as its list of choices"
        raise QuestionError(f"the constraint {found}: {GIVE_ONE}")
    for kind in given:
        _check_text(getattr(constraint, kind), f"the {KINDS[kind]}")
    _check_list(choices)
    return choices, *texts


def _check_list(choices: Sequence[Any]) -> None:
    if len(choices) > MAX_CHOICES:
        raise QuestionError(f"{len(choices)} choices: give at most {MAX_CHOICES}")
    seen = set()
    for choice in choices:
        _check_text(choice, "the choice")
        if choice in seen:
            raise QuestionError(f"the choice {shown(choice)} comes twice: give each one once")
        seen.add(choice)


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str) or not is_text(text):
        raise QuestionError(f"{name} {shown(text)} is no text: give a str of Unicode")
    if not text.strip():
        raise QuestionError(f"{name} {shown(text)} is empty: give one, or no constraint")
    if len(text) > MAX_TEXT:
        raise QuestionError(f"{name} has {len(text)} characters: give at most {MAX_TEXT}")


def grammar_source(kind: str, text: str, joins_words: bool) -> str:
    """The grammar as llguidance takes it. joins_words: whether a space follows every word."""
    from llguidance import LLMatcher

    if not joins_words:
        return {"regex": LLMatcher.grammar_from_regex, "lark": LLMatcher.grammar_from_lark}.get(
            kind, _schema_source
        )(text)
    # A word's bytes cannot be spelled in parts, so that nothing is forced.
    unforced = '%llguidance {"no_forcing": true}\n'
    if kind == "regex":  # one lexeme, which cannot take the space for a part of itself
        whole = json.loads(LLMatcher.grammar_from_regex(f"(?:{text}) "))
        whole["grammars"][0]["lark_grammar"] = unforced + whole["grammars"][0]["lark_grammar"]
        return json.dumps(whole)
    answer = {"lark_grammar": text}
    if kind == "json_schema":
        answer = json.loads(_schema_source(text))["grammars"][0]
    outer = {"lark_grammar": unforced + 'start: @answer " "'}
    return json.dumps({"grammars": [outer, answer | {"name": "answer"}]})


def _schema_source(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(schema, defaults=JSON_FORM)
    except ValueError as error:
        raise refused("json_schema", schema, brief(error)) from error


def refused(kind: str, text: str, reason: str) -> QuestionError:
    return QuestionError(f"the {KINDS[kind]} {shown(text)} is refused ({reason}): {HINTS[kind]}")


def reason_of(text: str) -> str:
    """What is wrong, from several lines of llguidance: what its parser of regular expressions says
    is in a line of its own."""
    lines = text.splitlines() or [""]
    said = next((line for line in lines if line.startswith("error: ")), lines[0])
    return brief(ValueError(said.removeprefix("error: ")))


def check_logprobs(question: Question) -> None:
    """Raises QuestionError."""
    alternatives: Any = question.logprobs
    if alternatives is None:
        return
    if question.constraint is not None and question.constraint.choices:
        raise QuestionError(
            "a question with choices has no logprobs: the answer says how probable each choice is"
        )
    if not is_whole(alternatives) or not 0 <= alternatives <= MAX_LOGPROBS:
        raise QuestionError(
            f"logprobs {shown(alternatives)}: give how many alternatives to report of each token, "
            f"0 to {MAX_LOGPROBS}, or None for no report"
        )
