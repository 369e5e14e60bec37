"""LiveVLM's compression and retrieval (arXiv:2505.15269) stated plainly: one layer, one head and one token at a time, in float64."""

from __future__ import annotations

import numpy as np
from support.fake_engines import rotate


def attention_shares(k, positions, queries, turn=rotate):
    """[L, n]: softmax(Q K^T) of the last rows, averaged over rows and query heads; 1 = an even share. k [L, n, Hkv, D], queries [L, R, Hq, D]."""
    layers, count, heads, dim = k.shape
    rows = min(queries.shape[1], count)
    group = queries.shape[2] // heads
    shares = np.zeros((layers, count))
    for layer in range(layers):
        for head in range(queries.shape[2]):
            keys = np.array([turn(k[layer, i, head // group].astype(np.float64), positions[i]) for i in range(count)])
            for row in range(1, rows + 1):
                q = turn(queries[layer, -row, head].astype(np.float64), positions[-row])
                weights = np.exp(keys @ q / dim**0.5)
                shares[layer] += weights / weights.sum() / rows / queries.shape[2] * count
    return shares


def two_phases(scores, bucket, capacity, first):
    """Indices kept, ascending. Phase 1: the `first` tokens with the highest scores go to their buckets, which keep `capacity` of them.
    Phase 2: down the rest of the list, a token is filled in where its bucket has room."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    held = {number: [] for number in set(bucket.tolist())}
    for token in ranked[:first]:
        held[bucket[token]].append(token)
    held = {number: tokens[:capacity] for number, tokens in held.items()}
    for token in ranked[first:]:
        if len(held[bucket[token]]) < capacity:
            held[bucket[token]].append(token)
    return sorted(token for tokens in held.values() for token in tokens)
