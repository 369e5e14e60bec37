"""YAML that people write by hand: without code, without aliases, and errors of one line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from vicort.runtime.errors import ConfigError
from vicort.runtime.redact import redact
from vicort.runtime.safe_text import shown

MAX_DIGITS = 1000  # of an integer: Python converts at most 4,300 digits to text
BOOL = "tag:yaml.org,2002:bool"
MAX_KEY = 64  # characters of a key that an error shows
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class _PlainLoader(yaml.SafeLoader):
    """YAML without code and without aliases, which can make a small file very large."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                f"aliases (*{shown(self.peek_event().anchor)}) are not allowed here: write the "
                "value out, or put text with a * in quotes"
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
            raise yaml.YAMLError(f"an integer of more than {MAX_DIGITS} digits")
        return super().construct_scalar(node)


class _KeyTwice(yaml.YAMLError):
    pass


class _WordyLoader(_PlainLoader):
    """The same, where yes, no, on and off are words and not booleans, as in YAML 1.2, and where no
    key stands twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML declares it)
        letter: [(tag, form) for tag, form in resolvers if tag != BOOL or letter in "tTfF"]
        for letter, resolvers in _PlainLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A key that stands twice would hide the first one."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key.value, str)):
            if key.value in seen:
                name = f" {shown(key.value)}" if len(key.value) <= MAX_KEY else ""
                raise _KeyTwice(
                    f"line {key.start_mark.line + 1}: key{name} is there twice: rename one, or "
                    "leave it out"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str, *, words: bool = False, private: bool = False) -> Any:
    """The content of YAML text.

    where: names the text in errors. words: yes, no, on and off stay words, and a key
    may not stand twice. private: errors say the line and column, and show nothing of the text.
    Raises ConfigError.
    """
    try:
        return yaml.load(text, _WordyLoader if words else _PlainLoader)
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        if not isinstance(error, yaml.YAMLError):
            why = "a value that YAML does not allow, or nested too deep"
        else:
            why = _place(error) if private else redact(" ".join(str(error).split()))
        quote = "; put text with a question mark in quotes" if "but got '?'" in why else ""
        cause = None if private else error
        raise ConfigError(f"{where} is not YAML: {why}{quote}") from cause


def _place(error: yaml.YAMLError) -> str:
    """Where an error is and which, without the text. PyYAML quotes its words (`'!tag'`), but
    also single signs and its own names (`'<scalar>'`), which stay."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = ", ".join(filter(None, (error.context, error.problem)))
    elif isinstance(error, yaml.reader.ReaderError):
        where, why = "", f"a character at position {error.position} is not allowed"
    elif isinstance(error, _KeyTwice):
        return redact(str(error))
    else:
        where, why = "", str(error)
    return where + _QUOTED.sub(_without_words, " ".join(why.split()))


def _without_words(quoted: re.Match[str]) -> str:
    inner = quoted[0][1:-1]
    return quoted[0] if len(inner) <= 1 or re.fullmatch(r"<[a-z ]+>", inner) else "'…'"
