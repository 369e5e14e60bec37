"""Constraints of answers, compiled to grammars of a model's tokens.

llguidance computes which tokens may follow (https://github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vicort.runtime.core import Constraint
from vicort.runtime.errors import EngineError, QuestionError
from vicort.runtime.language.constraints import (
    KINDS,
    Key,
    constraint_key,
    grammar_source,
    reason_of,
    refused,
)
from vicort.runtime.language.mask_vocabulary import MaskVocabulary, mask_vocabulary
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.language.token_mask import TokenGrammar, TokenMask, allowed_tokens
from vicort.runtime.safe_text import brief, shown

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_KEPT = 32  # grammars that are kept for questions with equal constraints
# states of the automaton that reads a text, some 2 kB each
MAX_STATES = 50_000


class TokenGrammars:
    """Checks constraints, and keeps their compiled grammars. Thread-safe."""

    def __init__(self, prompt: Prompt, width: int, ends: Sequence[int]) -> None:
        """width: of the logits. ends: tokens that end an answer."""
        self._prompt = prompt
        self._width = width
        self._ends = tuple(ends)
        self._kept: OrderedDict[Key, TokenGrammar | None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, constraint: Constraint | None) -> None:
        """Raises QuestionError for a constraint that is none, or that no answer of this model can
        fulfil as far as its beginning shows."""
        if constraint is not None:
            self._grammar(constraint)

    def start(self, constraint: Constraint | None) -> TokenMask | None:
        """The tokens of one new answer; None where any may come. Choices limit none: they are
        compared as wholes."""
        grammar = None if constraint is None else self._grammar(constraint)
        return None if grammar is None else TokenMask(grammar)

    def _grammar(self, constraint: Constraint) -> TokenGrammar | None:
        key = constraint_key(constraint)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        choices, *texts = key
        if choices:
            self._check_choices(choices)
            grammar = None
        else:
            kind, text = next(each for each in zip(KINDS, texts, strict=True) if each[1])
            grammar = self._compiled(kind, text or "")
        with self._lock:
            self._kept[key] = grammar
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _check_choices(self, choices: Sequence[str]) -> None:
        for choice in choices:
            written = self._prompt.rewritten(choice)
            if written != choice:
                raise QuestionError(
                    f"the choice {shown(choice)} cannot be written by this model, whose tokenizer "
                    f"makes {shown(written)} of it: give another one"
                )

    def _compiled(self, kind: str, text: str) -> TokenGrammar:
        vocabulary = self._vocabulary()
        source = grammar_source(kind, text, vocabulary.joins_words)
        matcher = _matcher(vocabulary, source)
        if matcher.is_error():
            raise refused(kind, text, reason_of(matcher.get_error()))
        first = allowed_tokens(matcher.deep_copy(), vocabulary)
        if not first.any():
            raise QuestionError(
                f"the {KINDS[kind]} {shown(text)} asks for a text that this model's tokenizer "
                "cannot begin: give one of words that the model knows"
            )
        first.flags.writeable = False  # many answers read it
        return TokenGrammar(vocabulary, matcher, first)

    def _vocabulary(self) -> MaskVocabulary:
        prompt = self._prompt
        try:
            return mask_vocabulary(prompt.tokenizer, prompt.controls, self._ends, self._width)
        except ValueError as error:
            raise EngineError(
                f"answers of this model cannot be limited, because its tokenizer is of another "
                f"kind ({brief(error)}): ask without a constraint, or with choices"
            ) from error


def _matcher(vocabulary: MaskVocabulary, source: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=MAX_STATES, verbose_errors=False)
    return LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=limits)
