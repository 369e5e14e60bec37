"""Sampling: from logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vicort.runtime.core import Sampling
from vicort.runtime.errors import ConfigError


class TokenChoice:
    """Chooses the tokens of one answer. Equal seeds give equal answers."""

    def __init__(self, options: Sampling) -> None:
        _check(options)
        self.options = options
        self._random = np.random.default_rng(options.seed)

    def choose(self, logits: np.ndarray, answer: Sequence[int]) -> int:
        """logits: [V] float; answer: the tokens so far. Greedy at temperature 0."""
        options = self.options
        logits = logits.astype(np.float64)
        if options.repetition_penalty != 1 and answer:
            seen = np.unique(answer)
            logits[seen] = np.where(
                logits[seen] > 0,
                logits[seen] / options.repetition_penalty,
                logits[seen] * options.repetition_penalty,
            )
        if options.temperature == 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")
        if options.top_k:
            order = order[: options.top_k]
        chances = _softmax(logits[order] / options.temperature)
        if options.top_p < 1:
            count = int(np.searchsorted(np.cumsum(chances), options.top_p)) + 1
            order, chances = order[:count], chances[:count] / chances[:count].sum()
        return int(self._random.choice(order, p=chances))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _check(options: Sampling) -> None:
    if options.temperature < 0:
        raise ConfigError(
            f"temperature {options.temperature} is negative: 0 is greedy, 0.7 is usual"
        )
    if not 0 < options.top_p <= 1:
        raise ConfigError(f"top_p {options.top_p} is out of range: give more than 0 and at most 1")
    if options.top_k < 0:
        raise ConfigError(f"top_k {options.top_k} is negative: 0 takes all tokens")
    if options.repetition_penalty <= 0:
        raise ConfigError(
            f"repetition_penalty {options.repetition_penalty} is not positive: 1 changes nothing"
        )
    if options.max_tokens < 1:
        raise ConfigError(f"max_tokens {options.max_tokens} is below 1: give at least 1")
