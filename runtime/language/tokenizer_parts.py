"""Parts of a tokenizer that its library, which is Rust, does not survive or says more than one line
about: they are found in the file before the library reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

# what a file must contain to have such a part, in plain letters or as escapes
SUSPECTS = re.compile(
    rb'"type"\s*:\s*"(?:Precompiled|FixedLength|Strip|WordPiece)"'
    rb'|"continuing_subword_prefix"\s*:\s*"[^"]|\\u00[2-7]'
)
MAX_WORD = 10_000  # characters of a word that WordPiece looks up, in a time that grows as a square


def check_parts(content: bytes) -> None:
    """Raises ValueError, which says what the library would fail at; `content`: of a
    tokenizer.json."""
    if not SUSPECTS.search(content):
        return
    try:
        json.loads(content, object_pairs_hook=_checked)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _checked(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, if it is no part that fails."""
    part = dict(pairs)
    for key, value in pairs:  # a key that comes twice is looked at twice
        if key == "type":
            _check(value, part)
        if key == "continuing_subword_prefix" and value:
            _check_prefix(value, part.get("merges"))
    return part


def _check(kind: Any, part: dict[str, Any]) -> None:
    if kind == "Precompiled":
        raise ValueError("it has a precompiled normalizer, which no model here needs")
    if kind == "FixedLength" and not _is_number(part.get("length", 1), 1):
        raise ValueError("it cuts text in pieces of no length")
    if kind == "Strip" and part.get("stop"):  # a decoder's: tokens may be shorter
        raise ValueError("its decoder strips the ends of tokens")
    most = part.get("max_input_chars_per_word", 0)
    if kind == "WordPiece" and not _is_number(most, 0, MAX_WORD):
        raise ValueError(f"it takes words of more than {MAX_WORD} characters")


def _check_prefix(prefix: Any, merges: Any) -> None:
    """Of pieces that continue a word: the second half of each merge begins with it, or the library
    ends the whole program."""
    if not isinstance(prefix, str) or not prefix.isascii():
        raise ValueError("the prefix of pieces that continue a word is not ASCII")
    for merge in merges if isinstance(merges, list) else ():
        halves = merge.split(" ") if isinstance(merge, str) else merge
        second = halves[1] if isinstance(halves, list) and len(halves) == 2 else None
        if not isinstance(second, str) or not second.startswith(prefix):
            raise ValueError(f"a merge continues a word without {prefix!r}")


def _is_number(value: Any, least: int, most: int | None = None) -> bool:
    return isinstance(value, int) and least <= value and (most is None or value <= most)
