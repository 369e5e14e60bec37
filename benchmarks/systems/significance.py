"""Whether one system is significantly better than another. Both answered the same questions, so
they are compared stream by stream.

Questions of one stream are not independent, streams are. So the test swaps the two systems within
streams, and the bootstrap interval samples streams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 4000  # of the bootstrap
ALPHA = 0.05
# stream -> whether each of its questions was answered right, in one fixed order
Verdicts = Mapping[int, Sequence[bool]]


def sign_flip_p(differences: Sequence[int]) -> float:
    """Two-sided p of the sum of paired differences under random signs (Fisher 1935); exact."""
    chances: dict[int, float] = {0: 1.0}  # of each sum
    for difference in differences:
        turned: dict[int, float] = defaultdict(float)
        for total, chance in chances.items():
            turned[total + difference] += chance / 2
            turned[total - difference] += chance / 2
        chances = turned
    seen = abs(sum(differences))
    return min(1.0, sum(chance for total, chance in chances.items() if abs(total) >= seen))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p values of several comparisons, adjusted for the family-wise error rate (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return adjusted


def compare(ours: Verdicts, theirs: Verdicts) -> dict[str, Any]:
    """Accuracy of ours minus theirs over the streams that both have: with a 95 % bootstrap interval
    over streams, and p.

    Raises ValueError if they were not asked the same questions.
    """
    streams = sorted(ours.keys() & theirs.keys())
    if not streams or any(len(ours[stream]) != len(theirs[stream]) for stream in streams):
        raise ValueError(
            "two systems are compared over the same questions of the same streams only"
        )
    differences = np.array([sum(ours[stream]) - sum(theirs[stream]) for stream in streams])
    asked = np.array([len(ours[stream]) for stream in streams])
    drawn = np.random.default_rng(0).integers(0, len(streams), (DRAWS, len(streams)))
    low, high = np.percentile(differences[drawn].sum(1) / asked[drawn].sum(1), (2.5, 97.5))
    return {
        "difference": round(float(differences.sum() / asked.sum()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "p": sign_flip_p(differences.tolist()),
        "streams": len(streams),
        "questions": int(asked.sum()),
    }
