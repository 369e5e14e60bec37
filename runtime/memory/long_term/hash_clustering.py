"""Hash-bit clustering of keys, ReSV's: keys that lie on the same side of nearly all of some random
planes belong together.

V-Rex (arXiv 2512.12284) compares a new key with recent clusters only. Layers and KV heads cluster
alone: G = L x Hkv groups, side by side.
"""

from __future__ import annotations

import numpy as np

NONE = -1


class HashPlanes:
    """Random hyperplanes through the origin, of each group its own."""

    def __init__(self, groups: int, bits: int, width: int, seed: int) -> None:
        self.normals = (
            np.random.default_rng(seed).standard_normal((groups, width, bits)).astype(np.float32)
        )

    def bits(self, keys: np.ndarray) -> np.ndarray:
        """h(k) = [w . k > 0], as +1 and -1. keys: [G, n, D] -> [G, n, bits] float32."""
        return np.where(
            keys.astype(np.float32, copy=False) @ self.normals > 0, np.float32(1), np.float32(-1)
        )


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits that differ, of each of n with each of m. a: [G, n, bits], b: [G, m, bits], of +1 and -1
    -> [G, n, m] float32, whole numbers."""
    return (a.shape[-1] - a @ b.swapaxes(1, 2)) / 2


def assign(bits: np.ndarray, recent: np.ndarray, newness: np.ndarray, threshold: int) -> np.ndarray:
    """Which cluster each of a temporal unit's keys joins -> [G, n]: place of a recent one, or R + i
    for the i-th one that the unit opens.

    A key joins the nearest recent cluster, as it was before the unit, that is less than `threshold`
    bits away. Those that have none are taken in order: each joins the nearest of the clusters that
    such keys of its unit opened before it, or opens one. Of equals the newest.

    bits: [G, n, B]; recent: [G, R, B] hashes of the recent clusters; newness: [G, R] their order, 0
    = the one opened last, NONE = takes no more tokens.
    """
    places = recent.shape[1]
    distance = hamming(bits, recent)
    order = np.where(
        (newness[:, None] != NONE) & (distance < threshold),
        distance * places + newness[:, None],
        np.inf,
    )
    cluster = order.argmin(axis=2)
    alone = np.isinf(order.min(axis=2))
    return np.where(alone, places + _opened(bits, alone, threshold), cluster)


def _opened(bits: np.ndarray, alone: np.ndarray, threshold: int) -> np.ndarray:
    """[G, n] which of the new clusters each key that is `alone` [G, n] belongs to; of others,
    anything."""
    count = bits.shape[1]
    distance = hamming(bits, bits)
    opened = np.zeros(alone.shape, bool)
    cluster = np.zeros(alone.shape, np.int64)
    groups = np.arange(len(bits))
    for key in np.flatnonzero(alone.any(axis=0)):
        before = slice(key + 1)  # itself among them, which has opened nothing yet
        near = opened[:, before] & (distance[:, key, before] < threshold)
        nearest = np.where(
            near, distance[:, key, before] * count - np.arange(key + 1), np.inf
        ).argmin(axis=1)
        joins = near.any(axis=1)
        cluster[:, key] = np.where(joins, cluster[groups, nearest], opened.sum(axis=1))
        opened[:, key] = alone[:, key] & ~joins
    return cluster
