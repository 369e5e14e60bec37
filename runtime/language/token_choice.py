"""Sampling: from logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from vicort.runtime.core import Sampling
from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import is_whole, shown

MAX_SEED = 2**63

MAX_TEMPERATURE = 1e6  # at which all tokens are equally likely
MAX_PENALTY = 1e3  # of repetition; no larger one leaves a token


class TokenChoice:
    """Chooses the tokens of one answer. Equal seeds give equal answers."""

    def __init__(self, options: Sampling, context: Sequence[int] = ()) -> None:
        """options: greedy where they say nothing. context: tokens before the answer, which
        `repetition_penalty` counts too."""
        _check(options)
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = set(context)

    def choose(
        self, logits: np.ndarray, answer: Sequence[int], allowed: np.ndarray | None = None
    ) -> int:
        """logits: [V] float; answer: the tokens so far; allowed: [V] bool, of which one is True;
        None = all. Greedy at temperature 0."""
        options = self.options
        logits = logits.astype(np.float64)
        penalty = float(options.repetition_penalty or 1)
        if penalty != 1 and (self._seen or answer):
            seen = list(self._seen.union(answer))
            old = logits[seen]
            logits[seen] = np.where(old > 0, old / penalty, old * penalty)
        if allowed is not None:
            logits[~allowed] = -np.inf
        if not options.temperature:
            return int(np.argmax(logits))
        order = best_tokens(logits, options.top_k or len(logits))
        chances = _softmax(logits[order], float(options.temperature))
        if options.top_p is not None and options.top_p < 1:
            count = int(np.searchsorted(np.cumsum(chances), options.top_p)) + 1
            order, chances = order[:count], chances[:count] / chances[:count].sum()
        return int(self._random.choice(order, p=chances))


def log_probability(logits: np.ndarray, token: int) -> float:
    """Natural logarithm of the token's probability as the model gives it: at temperature 1 and
    without a penalty, whatever the sampling. logits: [V] float."""
    shifted = logits.astype(np.float32) - logits.max()
    return float(shifted[token]) - math.log(float(np.exp(shifted).sum(dtype=np.float64)))


def best_tokens(logits: np.ndarray, count: int) -> np.ndarray:
    """The tokens of the largest logits, at most `count`, in descending order."""
    if count < len(logits):  # sorting a whole vocabulary takes 20 ms
        best = np.sort(np.argpartition(-logits, count - 1)[:count])
        return best[np.argsort(-logits[best], kind="stable")]
    return np.argsort(-logits, kind="stable")


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    # The largest becomes 0 before the division, which may overflow at a very low temperature.
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def _check_types(options: Sampling) -> None:
    kinds = {"temperature": Real, "top_p": Real, "top_k": Integral, "repetition_penalty": Real}
    for name, kind in kinds.items():
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            whole = "whole number" if kind is Integral else "number"
            raise ConfigError(f"{name} {shown(value)} is no {whole}: give one, or None")
    stop: Any = options.stop
    if not isinstance(stop, list | tuple) or not all(isinstance(each, str) for each in stop):
        raise ConfigError(f"stop {shown(stop)}: give a tuple of texts, such as ('.', ' and')")


def _check(options: Sampling) -> None:
    temperature, top_p, top_k = options.temperature, options.top_p, options.top_k
    penalty = options.repetition_penalty
    _check_types(options)
    if temperature is not None and not 0 <= temperature <= MAX_TEMPERATURE:
        raise ConfigError(
            f"temperature {shown(temperature)} is negative, no number, or above "
            f"{MAX_TEMPERATURE:g}: 0 is greedy, 0.7 is usual"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p} is out of range: give more than 0 and at most 1")
    if top_k is not None and top_k < 0:
        raise ConfigError(f"top_k {top_k} is negative: 0 takes all tokens")
    if penalty is not None and not penalty > 0:
        raise ConfigError(f"repetition_penalty {penalty} is not above 0: 1 changes nothing")
    if penalty is not None and not 1 / MAX_PENALTY <= penalty <= MAX_PENALTY:
        raise ConfigError(
            f"repetition_penalty {shown(penalty)} is out of range: give {1 / MAX_PENALTY:g} to "
            f"{MAX_PENALTY:g}; 1 changes nothing"
        )
    most: Any = options.max_tokens
    if not is_whole(most) or most < 1:
        raise ConfigError(
            f"max_tokens {shown(most)} is below 1 or no whole number: give at least 1"
        )
    seed: Any = options.seed
    if not is_whole(seed) or not 0 <= seed < MAX_SEED:
        raise ConfigError(
            f"seed {shown(seed)} is none: give a whole number from 0 to {MAX_SEED - 1}"
        )
    if "" in options.stop:
        raise ConfigError("a stop text is empty: name the text before which an answer ends")
