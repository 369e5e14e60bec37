"""The temperature that makes the right choices most likely."""

from __future__ import annotations

import math
from collections.abc import Callable

from vicort.benchmarks.evaluation.rated_choices import ChoiceArrays
from vicort.runtime.language.choice_calibration import MAX_TEMPERATURE, MIN_TEMPERATURE

STEP = (math.sqrt(5) - 1) / 2  # of the golden section
PRECISION = 1e-6  # of the logarithm of the temperature


def fitted_temperature(questions: ChoiceArrays) -> float:
    """The temperature of the least mean negative log likelihood (arXiv:1706.04599, section 4.2).

    Within MIN_TEMPERATURE and MAX_TEMPERATURE; one of them if the best lies outside, as where
    all answers are right.
    """

    # The likelihood is convex in 1 / T, so it has one minimum in log T too.
    def mean(temperature: float) -> float:
        return float(questions.surprise(temperature).mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    found = math.exp(_minimum(lambda logarithm: mean(math.exp(logarithm)), low, high))
    return min(found, MIN_TEMPERATURE, MAX_TEMPERATURE, key=mean)


def is_at_bound(temperature: float) -> bool:
    """Whether the best temperature lies outside what is allowed."""
    bounds = (MIN_TEMPERATURE, MAX_TEMPERATURE)
    return any(math.isclose(temperature, bound, rel_tol=1e-3) for bound in bounds)


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """By golden section search; function: with one minimum between low and high."""
    left, right = high - STEP * (high - low), low + STEP * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > PRECISION:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - STEP * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + STEP * (high - low)
            at_right = function(right)
    return (low + high) / 2
