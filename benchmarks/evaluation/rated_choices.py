"""Questions with choices whose right answer is known: the numbers that calibration is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 1e-12  # probability of a choice that counts in the logarithm


@dataclass(frozen=True)
class RatedChoices:
    """One question. It has no place where the right answer is none of its choices."""

    kind: str
    # of the questions that share a stream, and so are no independent samples
    group: str
    # natural logarithms of the choices' probabilities, each less the same number
    logarithms: tuple[float, ...]
    right: int  # which of them is right
    outside: float | None = None  # probability of all other texts; None = not known


@dataclass(frozen=True)
class ChoiceArrays:
    """N questions with at most K choices."""

    logarithms: np.ndarray  # [N, K] float64; -inf where a question has fewer choices
    right: np.ndarray  # [N] int64
    group: np.ndarray  # [N] int64, 0 to G - 1

    @classmethod
    def of(cls, questions: Sequence[RatedChoices]) -> ChoiceArrays:
        """questions: at least one."""
        width = max(len(each.logarithms) for each in questions)
        logarithms = np.full((len(questions), width), -np.inf)
        for row, each in zip(logarithms, questions, strict=True):
            row[: len(each.logarithms)] = each.logarithms
        _, group = np.unique([each.group for each in questions], return_inverse=True)
        return cls(logarithms, np.array([each.right for each in questions]), group)

    def log_probabilities(self, temperature: float) -> np.ndarray:
        """[N, K] float64, over the choices: temperature scaling (arXiv:1706.04599, section 4.2)."""
        scaled = self.logarithms / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))

    def surprise(self, temperature: float) -> np.ndarray:
        """[N] float64: negative log likelihood of the right choices, in nats."""
        rows = np.arange(len(self.right))
        return -self.log_probabilities(temperature)[rows, self.right]


def logarithms_of(choices: Mapping[str, float]) -> tuple[float, ...]:
    """Of their probabilities, in their order; below LEAST as of LEAST."""
    return tuple(math.log(max(each, LEAST)) for each in choices.values())
