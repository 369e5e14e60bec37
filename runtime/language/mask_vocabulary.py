"""What each token of a model writes, in the form in which llguidance computes masks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Groups of tokens that are allowed together where the text may go on with any of them. As
# llguidance's own, and two for strings of JSON that may have only a few letters more.
_LETTERS = r'[^"\\\x00-\x1F\x7F]'
SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_LETTERS}{count}" for count in ("{1,3}", "{1,6}", "{1,10}", "{1,30}", "+")),
]

_building = threading.Lock()


class MaskVocabulary:
    """The tokens of a model as llguidance knows them."""

    def __init__(
        self, tokenizer: Tokenizer, controls: frozenset[int], ends: tuple[int, ...], width: int
    ) -> None:
        """controls: tokens that steer the model and are no text. ends: tokens that end an answer.
        width: of the logits, which may be more than the tokenizer has tokens.

        Raises ValueError for a tokenizer whose tokens llguidance cannot read.
        """
        # Tokens are whole words, between which decoding puts a space: `TokenGrammars` then limits
        # the text and one space after it, so that no word is taken for the beginning of another.
        if not ends:
            raise ValueError("it has no token that ends an answer")
        self.joins_words = tokenizer.decoder is None
        written = [token for token in tokenizer.get_vocab().values() if token < width]
        self.writable = np.zeros(width, bool)  # [V]: tokens that an answer may ever have
        self.writable[written] = True
        self.writable[[token for token in controls if token < width]] = False
        self.writable[list(ends)] = False
        self.continuing = self.writable.copy()  # [V]: without those that end it
        self.writable[list(ends)] = True
        self.tokenizer = self._read(tokenizer, ends)

    def _read(self, tokenizer: Tokenizer, ends: tuple[int, ...]) -> LLTokenizer:
        # Late: the import takes some 40 ms, and most sessions limit no answer.
        from llguidance import LLTokenizer, TokenizerWrapper

        width, end = len(self.writable), list(ends)
        if not self.joins_words:
            return LLTokenizer(tokenizer.to_str(), width, end, slices=SLICES)
        words = _Words(tokenizer, np.flatnonzero(self.continuing), ends, width)
        return LLTokenizer(TokenizerWrapper(words), eos_token=end)


class _Words:
    """A tokenizer of whole words, with the members that llguidance asks for."""

    bos_token_id = None

    def __init__(
        self, tokenizer: Tokenizer, words: Iterable[int], ends: tuple[int, ...], width: int
    ) -> None:
        self.tokens = [b"<[%d]>" % token for token in range(width)]
        for token in words:
            self.tokens[token] = tokenizer.id_to_token(int(token)).encode() + b" "
        self.special_token_ids = sorted(set(range(width)) - set(words))
        self.eos_token_id = ends[0]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        words = text if isinstance(text, str) else text.decode(errors="replace")
        found: list[int] = self._tokenizer.encode(words, add_special_tokens=False).ids
        return found


def mask_vocabulary(
    tokenizer: Tokenizer, controls: frozenset[int], ends: tuple[int, ...], width: int
) -> MaskVocabulary:
    """As `MaskVocabulary`, made once: of 150,000 tokens it takes about a second, in which no other
    thread of Python runs."""
    with _building:
        return _kept(tokenizer, controls, ends, width)


_kept = functools.lru_cache(maxsize=4)(MaskVocabulary)
