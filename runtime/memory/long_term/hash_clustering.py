"""Hash-bit clustering of keys, ReSV's: keys on the same side of nearly all of some random planes
belong together.

V-Rex (arXiv 2512.12284) compares a new key with recent clusters only. Layers and KV heads cluster
alone: G = L x Hkv groups, side by side.
"""

from __future__ import annotations

import numpy as np

from vicort.runtime.memory.page_tables import NONE


class HashPlanes:
    """Random hyperplanes through the origin, different ones for each group."""

    def __init__(self, groups: int, bits: int, width: int, seed: int) -> None:
        self.normals = (  # [G, D, bits]
            np.random.default_rng(seed).standard_normal((groups, width, bits)).astype(np.float32)
        )

    def bits(self, keys: np.ndarray) -> np.ndarray:
        """h(k) = [w . k > 0], as +1 and -1. keys: [G, n, D] -> [G, n, bits] float32."""
        return np.where(
            keys.astype(np.float32, copy=False) @ self.normals > 0, np.float32(1), np.float32(-1)
        )


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Counts the bits that differ, between each of n hashes and each of m.

    a: [G, n, bits], b: [G, m, bits], of +1 and -1 -> [G, n, m] float32, whole numbers.
    """
    return (a.shape[-1] - a @ b.swapaxes(1, 2)) / 2


def assign(bits: np.ndarray, recent: np.ndarray, newness: np.ndarray, threshold: int) -> np.ndarray:
    """Chooses a cluster for each of a temporal unit's keys.

    A key goes to the nearest recent cluster, as it was before the unit, that is less than
    `threshold` bits away. Keys without one are taken in order: each goes to the nearest of the
    clusters that such keys of its unit opened before it, or opens one. Of equals, the newest.

    bits: [G, n, B], +1 and -1; recent: [G, R, B] hashes of the recent clusters; newness: [G, R],
    0 = the cluster opened last, NONE = takes no more tokens. Returns [G, n] int64: the index of a
    recent cluster, or R + i for the i-th one that the unit opens.

    Three keys of four bits, and one recent cluster. Key 2 is one bit from it and goes there. Key 0
    is three bits away and opens a cluster, R + 0 = 1; key 1 is one bit from key 0 and follows it.

    >>> bits = np.array([[[1, 1, 1, 1], [1, 1, 1, -1], [-1, -1, -1, -1]]], np.float32)
    >>> recent = np.array([[[-1, -1, -1, 1]]], np.float32)
    >>> hamming(bits, recent)[0, :, 0].tolist()
    [3.0, 4.0, 1.0]
    >>> assign(bits, recent, newness=np.array([[0]]), threshold=2).tolist()
    [[1, 1, 0]]
    """
    count = recent.shape[1]
    distance = hamming(bits, recent)  # [G, n, R]
    is_near = (newness[:, None] != NONE) & (distance < threshold)
    # nearest first, of equal distance the newest
    preference = np.where(is_near, distance * count + newness[:, None], np.inf)
    has_none = np.isinf(preference.min(axis=2))
    new = count + _assign_to_new(bits, has_none, threshold)
    return np.where(has_none, new, preference.argmin(axis=2))


def _assign_to_new(bits: np.ndarray, has_none: np.ndarray, threshold: int) -> np.ndarray:
    """Chooses one of the unit's new clusters for each key without a recent one, `has_none` [G, n].

    Returns [G, n] int64, in which the values of other keys mean nothing.
    """
    groups, count = has_none.shape
    distance = hamming(bits, bits)  # [G, n, n]
    opens = np.zeros(has_none.shape, bool)  # keys that opened a cluster
    cluster = np.zeros(has_none.shape, np.int64)
    for key in np.flatnonzero(has_none.any(axis=0)):
        earlier = slice(key + 1)  # and the key itself, which has opened nothing yet
        is_near = opens[:, earlier] & (distance[:, key, earlier] < threshold)
        preference = np.where(
            is_near, distance[:, key, earlier] * count - np.arange(key + 1), np.inf
        )
        opener = preference.argmin(axis=1)  # [G]
        follows = is_near.any(axis=1)
        cluster[:, key] = np.where(follows, cluster[np.arange(groups), opener], opens.sum(axis=1))
        opens[:, key] = has_none[:, key] & ~follows
    return cluster
