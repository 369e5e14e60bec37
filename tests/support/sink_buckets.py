"""LiveVLM's compression and retrieval (arXiv:2505.15269) stated plainly: one layer, one head and
one token at a time, in float64."""

from __future__ import annotations

import numpy as np
from support.fake_engines import rotate

from vicort.runtime.policies.system import parse_system


def attention_shares(k, positions, queries, turn=rotate):
    """[L, n]: softmax(Q K^T) of the last rows, averaged over rows and query heads; 1 = an even
    share.

    k: [L, n, Hkv, D]; queries: [L, R, Hq, D]. turn: rotates vectors to positions.
    """
    layers, count, heads, dim = k.shape
    rows = min(queries.shape[1], count)
    group = queries.shape[2] // heads
    shares = np.zeros((layers, count))
    for layer in range(layers):
        for head in range(queries.shape[2]):
            keys = turn(k[layer, :, head // group].astype(np.float64), positions)
            for row in range(1, rows + 1):
                q = turn(queries[layer, -row, head].astype(np.float64), positions[-row])
                weights = np.exp(keys @ q / dim**0.5)
                shares[layer] += weights / weights.sum() / rows / queries.shape[2] * count
    return shares


def two_phases(scores, bucket, capacity, first):
    """Indices kept, ascending. Phase 1: the `first` tokens with the highest scores go to their
    buckets, which keep `capacity` of them. Phase 2: down the rest of the list, a token is added if
    its bucket has space."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = {number: [] for number in set(bucket.tolist())}
    for token in ranked[:first]:
        kept[bucket[token]].append(token)
    kept = {number: tokens[:capacity] for number, tokens in kept.items()}
    for token in ranked[first:]:
        if len(kept[bucket[token]]) < capacity:
            kept[bucket[token]].append(token)
    return sorted(token for tokens in kept.values() for token in tokens)


class PlainMemory:
    """One layer: buckets in a list, the oldest first, each with the number of its first bucket, its
    level, and its tokens in order."""

    def __init__(self, settings, max_tokens):
        self.settings, self.max_tokens = settings, max_tokens
        self.buckets: list[dict] = []
        self.bucket_count = 0  # buckets so far

    @property
    def tokens(self):
        return [token for bucket in self.buckets for token in bucket["tokens"]]

    def absorb(self, scores, names):
        """A chunk. scores, names: one a token."""
        capacity, count = self.settings.capacity, len(scores)
        buckets = max(round(self.settings.keep * count / capacity), 1)
        bucket = np.array([i * buckets // count for i in range(count)])
        kept = two_phases(scores, bucket, capacity, count // 3)
        excess = len(self.tokens) + len(kept) - self.max_tokens
        if excess > 0:
            self.merge(max(excess, self.max_tokens // 16))
        for number in range(buckets):
            tokens = [(float(scores[i]), names[i]) for i in kept if bucket[i] == number]
            self.buckets.append({"start": self.bucket_count + number, "level": 0, "tokens": tokens})
        self.bucket_count += buckets

    def merge(self, excess):
        """Two neighbours become one, which keeps its best: of the lowest level that has such two,
        the oldest."""
        wanted = len(self.tokens) - excess
        while len(self.tokens) > wanted:
            twins = [
                i
                for i, (a, b) in enumerate(zip(self.buckets, self.buckets[1:], strict=False))
                if a["level"] == b["level"] and a["start"] % 2 ** (a["level"] + 1) == 0
            ]
            if not twins:
                return
            i = min(twins, key=lambda i: (self.buckets[i]["level"], i))
            a, b = self.buckets[i : i + 2]
            both = a["tokens"] + b["tokens"]
            best = sorted(range(len(both)), key=lambda j: (-both[j][0], j))[
                : self.settings.capacity
            ]
            self.buckets[i : i + 2] = [
                {
                    "start": a["start"],
                    "level": a["level"] + 1,
                    "tokens": [both[j] for j in sorted(best)],
                }
            ]


def page_scores(keys, q, page):
    """One layer: the attention of q [Hq, D] over the mean keys of pages, the mean of all heads.
    keys: [n, Hkv, D] -> [pages]"""
    group = len(q) // keys.shape[1]
    means = np.array(
        [
            keys[first : first + page].astype(np.float64).mean(axis=0)
            for first in range(0, len(keys), page)
        ]
    )
    scores = np.zeros(len(means))
    for head, query in enumerate(q):
        weights = np.exp([mean[head // group] @ query / len(query) ** 0.5 for mean in means])
        scores += weights / weights.sum() / len(q)
    return scores


def sink_buckets_system(parameters, host_mb=1.0, device_mb=4.0):
    return parse_system(
        "name: test\ndrop: {policy: none}\ningest: {policy: recent-chunks, chunks: 2}\n"
        f"long_term: {{policy: sink-buckets, {parameters}}}\n"
        f"memory: {{device_mb: {device_mb}, host_mb: {host_mb}, when_full: drop-oldest}}",
        "test.yaml",
    )
