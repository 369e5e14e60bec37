"""Boxes around the keys of a page, and which pages a query could attend to most.

FreeKV (arXiv 2505.13109), section on page selection, after Quest (2406.10774) and ArkVale. Keys and
queries are the engine's, before rotation, where FreeKV's are rotated: so a score depends on what a
page holds, and not on how far away it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vicort.runtime.policies.long_term import Digest, GroupScores, GroupSimilarity


def boxes(k: np.ndarray, page: np.ndarray, digest: Digest) -> np.ndarray:
    """Computes a box around the keys of each page, layer and head.

    k: [L, n, Hkv, D] float, not rotated; page: [n] page of each token: 0, 1, …, ascending without a
    gap. digest: "min-max" = the box that holds every key (the paper); "mean-radius" = the same
    centre, and the mean distance of the keys from it as radius (FreeKV's code). Returns
    [L, Hkv, pages, 2 D] float32: the centre, then the radius, both in each dimension.

    Keys 0, 1 and 4 of one dimension: the centre is 2, and the distances from it are 2, 1 and 2.

    >>> k = np.array([0.0, 1, 4]).reshape(1, 3, 1, 1)
    >>> boxes(k, np.array([0, 0, 0]), "min-max").tolist()
    [[[[2.0, 2.0]]]]
    >>> [round(x, 2) for x in boxes(k, np.array([0, 0, 0]), "mean-radius").ravel().tolist()]
    [2.0, 1.67]
    """
    starts = np.flatnonzero(np.diff(page, prepend=-1))
    k = k.astype(np.float32, copy=False)
    low, high = np.minimum.reduceat(k, starts, axis=1), np.maximum.reduceat(k, starts, axis=1)
    centre = (low + high) / 2
    if digest == "min-max":
        radius = (high - low) / 2
    else:
        tokens = np.diff(starts, append=len(page)).astype(np.float32)
        distances = np.abs(k - centre[:, page])
        radius = np.add.reduceat(distances, starts, axis=1) / tokens[:, None, None]
    return np.concatenate([centre, radius], axis=-1).transpose(0, 2, 1, 3)


def page_scores(
    q: np.ndarray, pages: Sequence[np.ndarray], group_scores: GroupScores
) -> np.ndarray:
    """Scores each page for each group of query heads that share a KV head.

    q: [L, Hq, D] float32; pages: boxes [L, Hkv, n, 2 D], in one or more parts, in order. Returns
    [L, Hkv, P] float32, P the sum of the n. group_scores: the mean or the maximum over the heads of
    a group

    - "mean-query", "max-query": of their queries, dimension by dimension; the score is the bound
    - "mean-score", "max-score": of their bounds
    - "mean-softmax", "max-softmax": of the softmax of a head's bounds over its pages
    - "mean-scaled-softmax": of that softmax with bounds / sqrt(D), as in attention (the paper)

    The bound of a page is the largest q . k of any k in its box, q . centre + |q| . radius. With
    q = 2, boxes [1, 3] and [-4, 0] bound it by 6 and 0, and their softmax is 1 / (1 + e^-6) and
    1 / (1 + e^6).

    >>> two_boxes = np.array([[2.0, 1.0], [-2.0, 2.0]], np.float32)[None, None]
    >>> q = np.full((1, 1, 1), 2, np.float32)
    >>> page_scores(q, [two_boxes], "mean-score").tolist()
    [[[6.0, 0.0]]]
    >>> [round(x, 4) for x in page_scores(q, [two_boxes], "mean-softmax").ravel().tolist()]
    [0.9975, 0.0025]
    """
    layers, query_heads, size = q.shape
    heads = pages[0].shape[1]
    combined = np.max if group_scores.startswith("max") else np.mean
    queries = q.reshape(layers, heads, query_heads // heads, size)
    if group_scores.endswith("query"):
        queries = combined(queries, axis=2, keepdims=True)
    if group_scores == "mean-scaled-softmax":
        queries = queries * np.float32(size**-0.5)
    both = np.concatenate([queries, np.abs(queries)], axis=-1)  # one product with centre and radius
    # with few queries, boxes first is five times as fast as queries first
    parts = [part @ both.swapaxes(-1, -2) for part in pages]
    scores = np.ascontiguousarray(np.concatenate(parts, axis=-2).swapaxes(-1, -2))
    if group_scores.endswith("softmax"):
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
    return combined(scores, axis=2)


def top_pages(scores: np.ndarray, count: int) -> np.ndarray:
    """Chooses the `count` pages with the highest scores; of equals, the earlier.

    scores: [L, Hkv, P] -> [L, Hkv, min(count, P)] int64 indices, ascending.

    >>> top_pages(np.array([[[0.2, 0.5, 0.2, 0.1]]]), count=2).tolist()
    [[[0, 1]]]
    """
    pages = scores.shape[-1]
    count = min(count, pages)
    if not count:
        return np.empty((*scores.shape[:2], 0), np.int64)
    lowest = np.partition(scores, pages - count, axis=-1)[..., pages - count, None]
    is_above, is_equal = scores > lowest, scores == lowest
    equals_wanted = count - is_above.sum(axis=-1, keepdims=True)
    chosen = is_above | (is_equal & (np.cumsum(is_equal, axis=-1) <= equals_wanted))
    return np.nonzero(chosen)[2].reshape(*scores.shape[:2], count)


def query_similarity(
    q: np.ndarray, other: np.ndarray, kv_heads: int, group_similarity: GroupSimilarity = "mean"
) -> np.ndarray:
    """C of FreeKV: the cosine between two queries [L, Hq, D], its mean or maximum over each group
    of query heads -> [L, Hkv]. It is 0 where a query is zero."""
    product = np.linalg.norm(q, axis=-1) * np.linalg.norm(other, axis=-1)
    cosine = np.divide(
        (q * other).sum(axis=-1), product, out=np.zeros_like(product), where=product > 0
    )
    groups = cosine.reshape(len(q), kv_heads, -1)
    return groups.max(axis=-1) if group_similarity == "max" else groups.mean(axis=-1)
