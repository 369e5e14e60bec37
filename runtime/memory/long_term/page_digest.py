"""Pages summed up by boxes around their keys, and which pages a query could attend to most.

FreeKV (arXiv 2505.13109), section on page selection, after Quest (2406.10774) and ArkVale. Keys and
queries are the engine's, before rotation, where FreeKV's are rotated: so a score says what a page
holds, and nothing about how far away it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vicort.runtime.policies.long_term import Digest


def boxes(k: np.ndarray, page: np.ndarray, digest: Digest) -> np.ndarray:
    """A box for the keys of each page, a layer and head.

    k: [L, n, Hkv, D] float, not rotated; page: [n] 0, 1, …, ascending and without a gap. digest:
    "min-max" = the box that holds every key (the paper); "mean-radius" = the same centre, and the
    mean distance of the keys from it as radius (FreeKV's code). -> [L, Hkv, pages, 2 D] float32:
    the centre, then the radius, both in each dimension
    """
    starts = np.flatnonzero(np.diff(page, prepend=-1))
    k = k.astype(np.float32, copy=False)
    low, high = np.minimum.reduceat(k, starts, axis=1), np.maximum.reduceat(k, starts, axis=1)
    centre = (low + high) / 2
    if digest == "min-max":
        radius = (high - low) / 2
    else:
        tokens = np.diff(starts, append=len(page)).astype(np.float32)
        radius = (
            np.add.reduceat(np.abs(k - centre[:, page]), starts, axis=1) / tokens[:, None, None]
        )
    return np.concatenate([centre, radius], axis=-1).transpose(0, 2, 1, 3)


def page_scores(q: np.ndarray, pages: Sequence[np.ndarray]) -> np.ndarray:
    """How much attention each page could get: made equal in sum over a head's pages, then averaged
    inside each group of query heads.

    q: [L, Hq, D] float32; pages: boxes [L, Hkv, n, 2 D], all of them in order -> [L, Hkv, P]
    float32, P the sum of the n
    """
    layers, query_heads, size = q.shape
    heads = pages[0].shape[1]
    # The largest q·k of any k in a box is q·centre + |q|·radius: one product with both.
    both = np.concatenate([q, np.abs(q)], axis=-1).reshape(
        layers, heads, query_heads // heads, 2 * size
    ) * np.float32(size**-0.5)
    # Boxes first: five times as fast as the other way round, with few queries.
    parts = [part @ both.swapaxes(-1, -2) for part in pages]
    bounds = np.ascontiguousarray(np.concatenate(parts, axis=-2).swapaxes(-1, -2))
    bounds -= bounds.max(axis=-1, keepdims=True)
    weights = np.exp(bounds, out=bounds)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights.mean(axis=2)


def top_pages(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` pages that score highest, of equals the earlier: [L, Hkv, P] -> [L, Hkv,
    min(count, P)] indices, ascending."""
    pages = scores.shape[-1]
    count = min(count, pages)
    if not count:
        return np.empty((*scores.shape[:2], 0), np.int64)
    least = np.partition(scores, pages - count, axis=-1)[..., pages - count, None]
    above, equal = scores > least, scores == least
    room = count - above.sum(axis=-1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=-1) <= room))
    return np.nonzero(chosen)[2].reshape(*scores.shape[:2], count)


def query_similarity(q: np.ndarray, other: np.ndarray, kv_heads: int) -> np.ndarray:
    """C of FreeKV: cosine between two queries [L, Hq, D], averaged inside each group of query heads
    -> [L, Hkv]. Nothing is like zero."""
    product = np.linalg.norm(q, axis=-1) * np.linalg.norm(other, axis=-1)
    cosine = np.divide(
        (q * other).sum(axis=-1), product, out=np.zeros_like(product), where=product > 0
    )
    return cosine.reshape(len(q), kv_heads, -1).mean(axis=-1)
