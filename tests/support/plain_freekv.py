"""A plain statement of FreeKV (arXiv 2505.13109): one page, one head, one number at a time; nothing
is kept on a device, copied, or done in the background."""

from __future__ import annotations

import numpy as np


def box(keys, digest="mean-radius"):
    """Lowest and highest value of each dimension, [T, D] -> [D], [D]; or FreeKV's code's estimate
    of them."""
    low, high = np.min(keys, axis=0), np.max(keys, axis=0)
    if digest == "min-max":
        return low, high
    centre = (low + high) / 2
    radius = sum(abs(key - centre) for key in keys) / len(keys)
    return centre - radius, centre + radius


def bound(query, keys, digest):
    """The largest product of a query [D] with a key in the box of keys [T, D]."""
    low, high = box(keys, digest)
    return sum(max(x * a, x * b) for x, a, b in zip(query, low, high, strict=True))


def softmax(bounds):
    weights = np.exp(np.array(bounds) - max(bounds))
    return weights / weights.sum()


def group_of_scores(queries, pages, digest, scores):
    """The score of each page for the queries [G, D] of a group; pages: keys [T, D] of each. As the
    public code writes it down, policy by policy."""
    over = {"mean": np.mean, "max": np.max}[scores.split("-")[0]]
    queries = [[float(x) for x in query] for query in queries]
    if scores in ("mean-query", "max-query"):  # avgQ, maxQ
        together = [over(dimension) for dimension in zip(*queries, strict=True)]
        return np.array([bound(together, keys, digest) for keys in pages])
    bounds = [np.array([bound(query, keys, digest) for keys in pages]) for query in queries]
    if scores in ("mean-softmax", "max-softmax"):  # avgSM, maxSM
        bounds = [softmax(each) for each in bounds]
    elif scores == "mean-scaled-softmax":  # avgSdM
        bounds = [softmax(each / len(queries[0]) ** 0.5) for each in bounds]
    else:
        assert scores in ("mean-score", "max-score")  # avgS, maxS
    return np.array([over(page) for page in zip(*bounds, strict=True)])


def choose(q, pages, budget, digest="mean-radius", scores="mean-scaled-softmax"):
    """The indices in `pages` of those to read, ascending, of each layer and KV head.

    q: [L, Hq, D]; pages: of each its keys [L, T, Hkv, D] -> [L][Hkv] lists
    """
    layers, _, kv_heads, _ = pages[0].shape if pages else (len(q), 0, 1, 1)
    group = q.shape[1] // kv_heads
    chosen = []
    for layer in range(layers):
        chosen.append([])
        for kv in range(kv_heads):
            queries = q[layer, kv * group : (kv + 1) * group]
            found = [page[layer, :, kv] for page in pages]
            values = group_of_scores(queries, found, digest, scores) if pages else []
            best = sorted(range(len(pages)), key=lambda page: (-values[page], page))[:budget]
            chosen[-1].append(sorted(best))
    return chosen


def cosine(q, other, kv_heads, similarity="mean"):
    """C_i: of each layer and KV head, the mean or the maximum over its query heads."""
    group = q.shape[1] // kv_heads
    similar = [
        [
            np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
            for a, b in zip(layer, before, strict=True)
        ]
        for layer, before in zip(q, other, strict=True)
    ]
    groups = np.array(similar).reshape(len(q), kv_heads, group)
    return groups.max(axis=-1) if similarity == "max" else groups.mean(axis=-1)


class PlainReader:
    """What each head reads, and when a run is repeated. A choice is (the queries that made it,
    numbers of pages), for a layer and head."""

    def __init__(
        self,
        kv_heads,
        layers,
        budget,
        tau_prefill,
        tau_decode,
        lookahead=2,
        digest="mean-radius",
        scores="mean-scaled-softmax",
        similarity="mean",
    ):
        self.heads = [(layer, head) for layer in range(layers) for head in range(kv_heads)]
        self.kv_heads = kv_heads
        self.budget = budget
        self.lookahead = lookahead
        self.digest = digest
        self.scores = scores
        self.similarity = similarity
        self.tau = {True: tau_prefill, False: tau_decode}
        # (layer, head) -> choice: what is read now, and next
        self.reads = {}
        self.next = {}
        self.corrected = None
        self.reruns = 0

    def choose(self, q, pages):
        """pages: {number: keys}"""
        numbers = sorted(pages)
        keys = [pages[number] for number in numbers]
        chosen = choose(q, keys, self.budget, self.digest, self.scores)
        return {
            (layer, head): (q, [numbers[index] for index in chosen[layer][head]])
            for layer, head in self.heads
        }

    def wrong(self, q, pages, prefill):
        tau = self.tau[prefill]
        if tau is None or len(pages) <= self.budget:
            return set()

        def alike(layer, head):
            chose, _ = self.reads[layer, head]
            return cosine(q, chose, self.kv_heads, self.similarity)[layer, head]

        return {(layer, head) for layer, head in self.heads if alike(layer, head) < tau}

    def correct(self, q, pages, wrong):
        again = self.choose(q, pages)
        self.reads |= {pair: again[pair] for pair in wrong}
        self.corrected = wrong
        self.reruns += 1
        return True


class PlainQuestion(PlainReader):
    def must_rerun(self, q, pages, prefill):
        if not pages:
            return False
        if self.corrected is None and (
            wrong := self.wrong(q, pages, prefill) if self.reads else set(self.heads)
        ):
            return self.correct(q, pages, wrong)
        corrected, self.corrected = self.corrected or set(), None
        self.reads |= {pair: choice for pair, choice in self.next.items() if pair not in corrected}
        self.next = self.choose(q, pages)
        if self.lookahead == 1:
            self.reads = self.next
        return False


class PlainChunks(PlainReader):
    q = None

    def must_rerun(self, q, pages):
        if self.corrected is None and self.reads and (wrong := self.wrong(q, pages, True)):
            return self.correct(q, pages, wrong)
        self.corrected, self.q = None, q
        return False

    def renew(self, pages):
        """Lets the next chunk read what this one's queries choose from the pages that left the
        window."""
        if pages and self.q is not None:
            self.reads = self.choose(self.q, pages)
