"""How probable the model found the tokens of an answer, and others in their place."""

from __future__ import annotations

import numpy as np

from vicort.runtime.core import TokenLogprobs
from vicort.runtime.language.choice_tree import log_totals
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.language.token_choice import best_tokens


class TokenReport:
    """The log-probabilities of one answer's tokens, if its question asked for them."""

    def __init__(self, prompt: Prompt, alternatives: int | None) -> None:
        """alternatives: how many of the most probable tokens are reported; None = no report."""
        self._prompt = prompt
        self._alternatives = alternatives
        self._tokens: list[TokenLogprobs] = []

    def add(self, logits: np.ndarray, token: int) -> None:
        """The answer's next token; logits: [V] float32, as the model gives them."""
        if self._alternatives is None:
            return
        best = best_tokens(logits, self._alternatives) if self._alternatives else np.empty(0, int)
        total = float(log_totals(logits[None])[0])
        text = self._prompt.token_text
        top = tuple((text(each), float(logits[each]) - total) for each in map(int, best))
        self._tokens.append(TokenLogprobs(text(token), float(logits[token]) - total, top))

    def of(self, count: int) -> tuple[TokenLogprobs, ...]:
        """Of the answer's first `count` tokens, which leaves its end out."""
        return tuple(self._tokens[:count])
