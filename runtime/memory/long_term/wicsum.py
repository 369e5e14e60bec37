"""WiCSum, ReSV's choice of clusters: the best by score until their share of the estimated attention
passes a threshold.

V-Rex (arXiv 2512.12284): a cluster's score is q . mean key, its weight score x tokens; clusters are
sorted by score and taken until the running sum of weights is above a share of the total. A running
sum needs scores that are not negative, and dot products may be: here the score is exp(q . mean key
/ sqrt(D)), what softmax attention would give each token of a cluster whose keys all equal their
mean.
"""

from __future__ import annotations

import numpy as np

BUCKETS = 64  # of scores below a head's best; the paper, too, sorts into buckets and stops early
BUCKET_WIDTH = 0.25  # in the exponent: beyond 16, e^-16 of the best, all share the last bucket


def wicsum(scores: np.ndarray, tokens: np.ndarray, share: float) -> np.ndarray:
    """[M, C] bool: of each row the fewest clusters, best scores first, of equals the first, whose
    weight is above `share` of its total.

    All with tokens are taken where no sum is above it, as with share 1. scores: [M, C], exponents;
    tokens: [M, C], 0 = no cluster.
    """
    there = tokens > 0
    # >= 0
    below = np.where(there, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True) - np.where(
        there, scores, 0
    )
    weights = np.where(there, tokens * np.exp(-np.where(there, below, 0)), 0).astype(np.float64)
    bucket = np.minimum(np.where(there, below, 0) / BUCKET_WIDTH, BUCKETS - 1).astype(np.int64)
    rows = np.arange(len(scores))
    histogram = np.bincount(
        (rows[:, None] * BUCKETS + bucket).ravel(), weights.ravel(), len(scores) * BUCKETS
    ).reshape(-1, BUCKETS)
    running = np.cumsum(histogram, axis=1)
    threshold = share * running[:, -1]
    above = running > threshold[:, None]
    # [M] the one bucket that has to be sorted
    last = np.where(above.any(axis=1), above.argmax(axis=1), BUCKETS - 1)
    before = running[rows, last] - histogram[rows, last]
    chosen = there & (bucket < last[:, None])
    row, column = np.nonzero(there & (bucket == last[:, None]))
    order = np.lexsort((column, below[row, column], row))
    row, column = row[order], column[order]
    # over all rows' last buckets, one behind the other
    preceding = np.cumsum(weights[row, column]) - weights[row, column]
    ahead = before[row] + preceding - preceding[np.searchsorted(row, row)]
    needed = ahead <= threshold[row]
    chosen[row[needed], column[needed]] = True
    return chosen
