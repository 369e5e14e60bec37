"""Vision Sink Bucketing (LiveVLM, arXiv:2505.15269): the tokens of a run of video that stay, by the
attention that they draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.host_rotary import rotate
from vicort.runtime.memory.long_term.sorted_groups import rank_in_group


def sink_scores(
    k: np.ndarray, positions: np.ndarray, queries: np.ndarray, model: ModelSpec
) -> np.ndarray:
    """The attention that the tokens of a run get from its last ones, in each layer: W = softmax(Q
    K^T), averaged over rows and query heads.

    k: [L, n, Hkv, D]; positions: [n, 3]; queries: [L, R, Hq, D] of the last R rows, of which only
    the last min(R, n) count; neither is rotated. Returns [L, n] float32, where 1 is an even share,
    so that runs of different lengths compare: attention of 0.5, 0.3 and 0.2 to three tokens gives
    scores of 1.5, 0.9 and 0.6.
    """
    layers, count, heads, dim = k.shape
    rows = min(queries.shape[1], count)
    q = rotate(queries[:, -rows:], positions[-rows:, None], model).reshape(
        layers, rows, heads, -1, dim
    )
    # query head h reads KV head h // G: [L, Hkv, rows x G, D]
    q = q.transpose(0, 2, 1, 3, 4).reshape(layers, heads, -1, dim)
    keys = rotate(k, positions[:, None], model).transpose(0, 2, 3, 1)  # [L, Hkv, D, n]
    return softmax(q @ keys * np.float32(dim**-0.5)).mean(axis=(1, 2)) * count


def keep_best(scores: np.ndarray, bucket: np.ndarray, capacity: int) -> np.ndarray:
    """Chooses, in each layer, each bucket's `capacity` tokens with the highest scores; of equals,
    the earlier.

    The paper fills buckets in two phases: first with the tokens of the highest scores, then down
    the list while a bucket has space. The result is this one, wherever the first phase ends.

    scores: [L, n]; bucket: [n] bucket of each token, ascending. Returns [L, m] indices of tokens,
    ascending in each layer.

    >>> keep_best(np.array([[0.1, 0.9, 0.5]]), bucket=np.array([0, 0, 1]), capacity=1).tolist()
    [[1, 2]]
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    # by bucket, the best first
    order = np.take_along_axis(order, np.argsort(bucket[order], axis=1, kind="stable"), axis=1)
    return np.sort(order[:, rank_in_group(bucket) < capacity], axis=1)


@dataclass(frozen=True)
class Buckets:
    """How a memory's tokens, in the order of the stream, fall into b buckets. The buckets are the
    same in all layers, though the tokens differ.

    A bucket of level j stands for 2^j of the buckets that chunks came in, counted from a multiple
    of 2^j: neighbours merge as in a binary tree. So each covers an equal part of the stream, except
    for the newest, which have not been merged as often.
    """

    starts: np.ndarray  # [b] int64, number of the first bucket that it stands for
    levels: np.ndarray  # [b] int64
    sizes: np.ndarray  # [b] int64, tokens in it, at most the capacity

    @staticmethod
    def none() -> Buckets:
        return Buckets(*(np.empty(0, np.int64) for _ in range(3)))

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum())

    def grown(self, sizes: np.ndarray) -> Buckets:
        """Appends buckets of level 0. sizes: [m], none of them 0."""
        first = self.starts[-1] + (1 << self.levels[-1]) if len(self.starts) else 0
        return Buckets(
            np.concatenate([self.starts, first + np.arange(len(sizes))]),
            np.concatenate([self.levels, np.zeros(len(sizes), np.int64)]),
            np.concatenate([self.sizes, sizes]),
        )

    def merged(self, capacity: int, excess: int) -> tuple[Buckets, np.ndarray]:
        """Merges neighbours, those of the lowest level first and of these the oldest, until
        `excess` tokens fewer fit.

        Returns the buckets, and for each token of before the index of its bucket now, [tokens]
        int64. Fewer tokens go only if no two neighbours are of one level.

        Of three buckets of one token each, the first two merge: they were buckets 0 and 1.

        >>> three = Buckets.none().grown(np.array([1, 1, 1]))
        >>> buckets, bucket = three.merged(capacity=1, excess=1)
        >>> buckets.starts.tolist(), buckets.levels.tolist(), buckets.sizes.tolist()
        ([0, 2], [1, 0], [1, 1])
        >>> bucket.tolist()
        [0, 0, 1]
        """
        buckets, bucket = self, np.arange(len(self.starts))
        target = self.tokens - excess
        while buckets.tokens > target and len(pairs := buckets._pairs()):
            both = buckets.sizes[pairs] + buckets.sizes[pairs + 1]
            freed = np.cumsum(np.maximum(both - capacity, 0))
            needed = np.searchsorted(freed, buckets.tokens - target) + 1
            buckets, index = buckets._merge_pairs(pairs[:needed], capacity)
            bucket = index[bucket]
        return buckets, np.repeat(bucket, self.sizes)

    def _pairs(self) -> np.ndarray:
        """Index of the first of every two neighbours that may merge, at the lowest level with any.

        >>> buckets = Buckets(np.array([0, 2, 3]), np.array([1, 0, 0]), np.array([1, 1, 1]))
        >>> buckets._pairs().tolist()
        [1]
        """
        is_first = self.starts[:-1] % (2 << self.levels[:-1]) == 0  # of two in the binary tree
        firsts = np.flatnonzero((self.levels[:-1] == self.levels[1:]) & is_first)
        if not len(firsts):
            return firsts
        return firsts[self.levels[firsts] == self.levels[firsts].min()]

    def _merge_pairs(self, pairs: np.ndarray, capacity: int) -> tuple[Buckets, np.ndarray]:
        """Merges each of `pairs` with its next neighbour.

        Returns the buckets, and for each bucket of before the index of the one it is in, [b].
        """
        is_gone = np.zeros(len(self.starts), bool)
        is_gone[pairs + 1] = True
        levels, sizes = self.levels.copy(), self.sizes.copy()
        levels[pairs] += 1
        sizes[pairs] = np.minimum(sizes[pairs] + sizes[pairs + 1], capacity)
        kept = Buckets(self.starts[~is_gone], levels[~is_gone], sizes[~is_gone])
        return kept, np.cumsum(~is_gone) - 1


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
