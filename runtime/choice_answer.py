"""From the probabilities of choices to an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vicort.runtime.core import Question
from vicort.runtime.language.choice_calibration import ChoiceCalibration, softmax
from vicort.runtime.language.choice_tree import ScoredChoice


def chosen(
    question: Question, scores: Sequence[ScoredChoice], calibration: ChoiceCalibration
) -> tuple[ScoredChoice, dict[str, Any]]:
    """The choice that answers a question, and the fields of its Answer that say so.

    The most probable choice, or one drawn by the question's temperature and seed.
    """
    names = question.constraint.choices if question.constraint else ()
    logs = np.array([score.log for score in scores])
    probabilities = calibration.choices(logs)
    number = int(logs.argmax())
    if temperature := float(question.sampling.temperature or 0):
        random = np.random.default_rng(question.sampling.seed)
        number = int(random.choice(len(logs), p=softmax(logs / temperature)))
    score = scores[number]
    return score, {
        "text": names[number],
        "tokens": len(score.tokens),
        "probability": math.exp(math.fsum(score.token_logs) / len(score.token_logs)),
        "first_probability": math.exp(score.token_logs[0]),
        "choices": dict(zip(names, map(float, probabilities), strict=True)),
        "outside": max(0.0, 1.0 - float(np.exp(logs).sum())),
    }
