"""How far probabilities are from the share of answers that are right.

The answer is the most probable choice, its probability the *confidence*. Expected calibration error
and reliability diagram are those of Guo et al. 2017 (arXiv:1706.04599): BINS bins of equal width,
((b - 1) / BINS, b / BINS].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vicort.benchmarks.evaluation.rated_choices import ChoiceArrays

BINS = 15
RESAMPLES = 2000  # of the bootstrap
DRAWS = 200  # of answers that are right as often as their confidence says
Interval = tuple[float, float]


@dataclass(frozen=True)
class ReliabilityBin:
    """The questions whose confidence lies in (low, high]."""

    low: float
    high: float
    questions: int
    confidence: float  # mean
    accuracy: float


@dataclass(frozen=True)
class CalibrationFigures:
    """Of one set of questions at one temperature; errors with 95 % intervals."""

    questions: int
    accuracy: float
    confidence: float  # mean
    ece: float  # expected calibration error
    ece_interval: Interval
    # its mean where each answer were right with the probability that is given: what few questions
    # show of an error where there is none
    ece_by_chance: float
    brier: float  # mean of sum_i (p_i - [i is right])^2 over the choices (Brier 1950): 0 to 2
    brier_interval: Interval
    nll: float  # negative log likelihood of the right choices, in nats
    nll_interval: Interval
    # probability that a right answer has a higher confidence than a wrong one (area under the ROC
    # curve); None = all are right, or all wrong
    separation: float | None
    bins: tuple[ReliabilityBin, ...]  # those with questions

    def to_json(self) -> dict[str, Any]:
        content = {key: _rounded(value) for key, value in vars(self).items() if key != "bins"}
        bins = [{key: _rounded(value) for key, value in vars(each).items()} for each in self.bins]
        return content | {"bins": bins}


@dataclass(frozen=True)
class Terms:
    """What each question adds to the figures, [N] each."""

    confidence: np.ndarray
    right: np.ndarray  # bool: whether the most probable choice is right
    brier: np.ndarray
    surprise: np.ndarray
    bin: np.ndarray  # int

    @classmethod
    def of(cls, questions: ChoiceArrays, temperature: float) -> Terms:
        probabilities = np.exp(questions.log_probabilities(temperature))
        rows = np.arange(len(probabilities))
        best = probabilities.argmax(axis=1)
        confidence = probabilities[rows, best]
        truth = np.zeros_like(probabilities)
        truth[rows, questions.right] = 1
        return cls(
            confidence=confidence,
            right=best == questions.right,
            brier=((probabilities - truth) ** 2).sum(axis=1),
            surprise=questions.surprise(temperature),
            bin=bin_of(confidence),
        )


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Which of the BINS bins, from 0 on. confidence: [N], above 0 and at most 1."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def figures(questions: ChoiceArrays, temperature: float) -> CalibrationFigures:
    """Of at least one question."""
    terms = Terms.of(questions, temperature)
    sampled = resampled(questions, temperature)
    return CalibrationFigures(
        questions=len(terms.right),
        accuracy=float(terms.right.mean()),
        confidence=float(terms.confidence.mean()),
        ece=calibration_error(terms.confidence, terms.right),
        ece_interval=interval(sampled["ece"]),
        ece_by_chance=_by_chance(terms.confidence),
        brier=float(terms.brier.mean()),
        brier_interval=interval(sampled["brier"]),
        nll=float(terms.surprise.mean()),
        nll_interval=interval(sampled["nll"]),
        separation=separation(terms.confidence, terms.right),
        bins=reliability(terms),
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """sum_b n_b / N |accuracy of bin b - mean confidence of bin b|; [N] each."""
    gaps = np.bincount(bin_of(confidence), right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(terms: Terms) -> tuple[ReliabilityBin, ...]:
    """The reliability diagram: bins with at least one question."""
    count = np.bincount(terms.bin, minlength=BINS)
    confidence = np.bincount(terms.bin, terms.confidence, BINS)
    right = np.bincount(terms.bin, terms.right, BINS)
    return tuple(
        ReliabilityBin(
            b / BINS,
            (b + 1) / BINS,
            int(count[b]),
            float(confidence[b] / count[b]),
            float(right[b] / count[b]),
        )
        for b in np.flatnonzero(count)
    )


def resampled(questions: ChoiceArrays, temperature: float) -> dict[str, np.ndarray]:
    """[RESAMPLES] of each figure, of groups of questions drawn with replacement: the same draws at
    every temperature, so that figures of two may be compared draw by draw."""
    terms, group = Terms.of(questions, temperature), questions.group
    groups = int(group.max()) + 1
    cells = group * BINS + terms.bin
    gaps = np.bincount(cells, terms.right - terms.confidence, groups * BINS)
    draws = np.random.default_rng(0).multinomial(groups, [1 / groups] * groups, RESAMPLES)
    count = draws @ np.bincount(group)
    return {
        "ece": np.abs(draws @ gaps.reshape(groups, BINS)).sum(axis=1) / count,
        "brier": draws @ np.bincount(group, terms.brier) / count,
        "nll": draws @ np.bincount(group, terms.surprise) / count,
    }


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _by_chance(confidence: np.ndarray) -> float:
    random = np.random.default_rng(0)
    drawn = (random.random((DRAWS, len(confidence))) < confidence).astype(float)
    return float(np.mean([calibration_error(confidence, right) for right in drawn]))


def separation(confidence: np.ndarray, right: np.ndarray) -> float | None:
    """Area under the ROC curve: ties count half. [N] each; None without right or wrong ones."""
    better, worse = confidence[right], np.sort(confidence[~right])
    if not len(better) or not len(worse):
        return None
    below = np.searchsorted(worse, better, "left") + np.searchsorted(worse, better, "right")
    return float(below.sum() / (2 * len(better) * len(worse)))


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value
