"""Which tokens may come next in an answer whose text is limited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from vicort.runtime.language.mask_vocabulary import MaskVocabulary


@dataclass(frozen=True)
class TokenGrammar:
    """A constraint in the form in which it limits tokens."""

    vocabulary: MaskVocabulary
    matcher: LLMatcher  # at the beginning of an answer; only copies of it move on
    first: np.ndarray  # [V] bool, with which tokens an answer may begin


class TokenMask:
    """The tokens that may follow in one answer. Used by one thread at a time."""

    def __init__(self, grammar: TokenGrammar) -> None:
        self._vocabulary = grammar.vocabulary
        self._matcher = grammar.matcher.deep_copy()
        self._allowed: np.ndarray | None = grammar.first  # None = not computed yet

    @property
    def fulfilled(self) -> bool:
        """Whether the text so far is all that the constraint asks for, so that it may end here."""
        return is_fulfilled(self._matcher)

    @property
    def closed(self) -> bool:
        """Whether nothing but the end may follow: the text is `fulfilled`, or else the model has no
        token that goes on with it, which may be known only after `allowed`."""
        if self._allowed is not None:
            return not (self._allowed & self._vocabulary.continuing).any()
        return self._matcher.is_stopped()

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return not self._vocabulary.continuing[token] and bool(self._vocabulary.writable[token])

    def accept(self, token: int) -> None:
        """The answer goes on with this token, which was allowed."""
        self._allowed = None
        self._matcher.consume_token(token)

    def allowed(self) -> np.ndarray:
        """[V] bool: what may follow; an end of the answer exactly where it is `fulfilled`. Computed
        once for each token, without Python's lock, so that an engine may run at the same time."""
        if self._allowed is None:
            self._allowed = allowed_tokens(self._matcher, self._vocabulary)
        return self._allowed


def is_fulfilled(matcher: LLMatcher) -> bool:
    return matcher.is_accepting() and not matcher.is_error()


def allowed_tokens(matcher: LLMatcher, vocabulary: MaskVocabulary) -> np.ndarray:
    """[V] bool, as `TokenMask.allowed`."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    width = len(vocabulary.writable)
    found = np.unpackbits(bits, count=width, bitorder="little").view(bool)
    # llguidance gives the end alone where no token can follow, whether the text is whole or not
    known = vocabulary.writable if is_fulfilled(matcher) else vocabulary.continuing
    return np.logical_and(found, known, out=found)
