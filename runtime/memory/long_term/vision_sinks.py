"""Vision Sink Bucketing (LiveVLM, arXiv:2505.15269): which tokens of a run of video stay, by the
attention that they draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.rotary import rotate


def sink_scores(
    k: np.ndarray, positions: np.ndarray, queries: np.ndarray, model: ModelSpec
) -> np.ndarray:
    """The attention that the tokens of a run get from its last ones, in each layer: W = softmax(Q
    K^T), averaged over rows and query heads.

    k: [L, n, Hkv, D]; positions: [n, 3]; queries: [L, R, Hq, D] of the last R rows, of which min(R,
    n) are there, the last; neither is rotated. Returns [L, n] float32, where 1 is an even share: so
    runs of different lengths compare.
    """
    layers, count, heads, dim = k.shape
    rows = min(queries.shape[1], count)
    q = rotate(queries[:, -rows:], positions[-rows:, None], model).reshape(
        layers, rows, heads, -1, dim
    )
    # query head h reads KV head h // G
    q = q.transpose(0, 2, 1, 3, 4).reshape(layers, heads, -1, dim)
    keys = rotate(k, positions[:, None], model).transpose(0, 2, 3, 1)  # [L, Hkv, D, n]
    return softmax(q @ keys * np.float32(dim**-0.5)).mean(axis=(1, 2)) * count


def keep_best(scores: np.ndarray, bucket: np.ndarray, capacity: int) -> np.ndarray:
    """Of each bucket the `capacity` tokens with the highest scores, layer by layer; of equals the
    earlier.

    The paper fills buckets in two phases: first with the tokens of the highest scores, then down
    the list wherever there is room. Wherever the first phase ends, this is what lies in them at
    last.

    scores: [L, n]; bucket: [n], whose token is in which, ascending. Returns [L, m] indices,
    ascending in each layer.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    # by bucket, the best first
    order = np.take_along_axis(order, np.argsort(bucket[order], axis=1, kind="stable"), axis=1)
    rank = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
    return np.sort(order[:, rank < capacity], axis=1)


@dataclass(frozen=True)
class Buckets:
    """How a memory's tokens, in the order of the stream, fall into buckets; the same in all layers,
    though the tokens differ.

    A bucket of level j stands for 2^j of the buckets that chunks came in, counted from a multiple
    of 2^j: neighbours merge as in a binary tree. So each covers an equal stretch of the stream, but
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
        """With new buckets of level 0 behind. sizes: [m], none of them 0."""
        first = self.starts[-1] + (1 << self.levels[-1]) if len(self.starts) else 0
        return Buckets(
            np.concatenate([self.starts, first + np.arange(len(sizes))]),
            np.concatenate([self.levels, np.zeros(len(sizes), np.int64)]),
            np.concatenate([self.sizes, sizes]),
        )

    def merged(self, capacity: int, excess: int) -> tuple[Buckets, np.ndarray]:
        """Neighbours merged, those of the lowest level first, of these the oldest, until `excess`
        tokens have no room.

        Returns the buckets that are left, and for each token of before the index of the one that it
        is in now. Fewer go only where nothing can be merged: where no two buckets are of one level.
        """
        left, group = self, np.arange(len(self.starts))
        while left.tokens > self.tokens - excess and len(pairs := left._pairs()):
            freed = np.maximum(left.sizes[pairs] + left.sizes[pairs + 1] - capacity, 0)
            enough = np.searchsorted(np.cumsum(freed), excess - (self.tokens - left.tokens)) + 1
            left, index = left._join(pairs[:enough], capacity)
            group = index[group]
        return left, np.repeat(group, self.sizes)

    def _pairs(self) -> np.ndarray:
        """The first of each two neighbours of the lowest level that has any."""
        twins = np.flatnonzero(
            (self.levels[:-1] == self.levels[1:])
            & (self.starts[:-1] % (2 << self.levels[:-1]) == 0)
        )
        return twins[self.levels[twins] == self.levels[twins].min()] if len(twins) else twins

    def _join(self, pairs: np.ndarray, capacity: int) -> tuple[Buckets, np.ndarray]:
        """The buckets with each of `pairs` and its neighbour as one; and where each went."""
        gone = np.zeros(len(self.starts), bool)
        gone[pairs + 1] = True
        levels, sizes = self.levels.copy(), self.sizes.copy()
        levels[pairs] += 1
        sizes[pairs] = np.minimum(sizes[pairs] + sizes[pairs + 1], capacity)
        return Buckets(self.starts[~gone], levels[~gone], sizes[~gone]), np.cumsum(~gone) - 1


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
