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
    """Chooses, in each row, the fewest clusters whose weight is above `share` of the row's total.

    Clusters are taken by score, the highest first; of equal scores, the first. Where no sum is
    above the threshold, as with share 1, all clusters with tokens are taken.

    scores: [M, C], exponents; tokens: [M, C], 0 = no cluster. Returns [M, C] bool.

    Three clusters of 1, 2 and 1 tokens weigh 1, 2 / e = 0.74 and 1 / e^1.5 = 0.22, and 1.96
    together. 0.6 of that is 1.18: the first cluster stays below it, the first two are above it.

    >>> wicsum(np.array([[2.0, 1.0, 0.5]]), np.array([[1, 2, 1]]), share=0.6).tolist()
    [[True, True, False]]

    Sorting whole rows is avoided: a histogram of the weights over the scores shows in which bucket
    the threshold is passed. Better buckets are taken whole, and that one alone is sorted.
    """
    exists = tokens > 0
    below_best = _below_best(scores, exists)
    weights = np.where(exists, tokens * np.exp(-below_best), 0).astype(np.float64)
    bucket = np.minimum(below_best / BUCKET_WIDTH, BUCKETS - 1).astype(np.int64)

    histogram = _histogram(bucket, weights)
    running = np.cumsum(histogram, axis=1)
    threshold = share * running[:, -1]
    above = running > threshold[:, None]
    passing = np.where(above.any(axis=1), above.argmax(axis=1), BUCKETS - 1)  # [M]
    chosen = exists & (bucket < passing[:, None])

    row, column = np.nonzero(exists & (bucket == passing[:, None]))
    by_score = np.lexsort((column, below_best[row, column], row))
    row, column = row[by_score], column[by_score]
    rows = np.arange(len(scores))
    in_better_buckets = running[rows, passing] - histogram[rows, passing]  # [M]
    # exclusive running sum over the passing buckets of all rows, then of each row alone
    preceding = np.cumsum(weights[row, column]) - weights[row, column]
    first_of_row = np.searchsorted(row, row)
    sum_before = in_better_buckets[row] + preceding - preceding[first_of_row]
    needed = sum_before <= threshold[row]
    chosen[row[needed], column[needed]] = True
    return chosen


def _below_best(scores: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """How far each score [M, C] is below its row's best, >= 0; 0 where there is no cluster."""
    best = np.where(exists, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    return np.where(exists, best - np.where(exists, scores, 0), 0)


def _histogram(bucket: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum of the weights [M, C] in each bucket [M, C] of a row: [M, BUCKETS] float64."""
    rows = len(bucket)
    cell = np.arange(rows)[:, None] * BUCKETS + bucket
    return np.bincount(cell.ravel(), weights.ravel(), rows * BUCKETS).reshape(-1, BUCKETS)
