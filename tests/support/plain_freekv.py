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


def choose(q, pages, budget, digest="mean-radius"):
    """The indices in `pages` of those to read, ascending, of each layer and KV head.

    q: [L, Hq, D]; pages: of each its keys [L, T, Hkv, D] -> [L][Hkv] lists
    """
    layers, _, kv_heads, size = pages[0].shape if pages else (len(q), 0, 1, 1)
    group = q.shape[1] // kv_heads
    chosen = []
    for layer in range(layers):
        chosen.append([])
        for kv in range(kv_heads):
            scores = np.zeros(len(pages))
            for head in range(kv * group, (kv + 1) * group):
                bounds = []
                for keys in pages:
                    low, high = box(keys[layer, :, kv], digest)
                    bounds.append(
                        sum(
                            max(x * a, x * b)
                            for x, a, b in zip(q[layer, head], low, high, strict=True)
                        )
                        / size**0.5
                    )
                weights = np.exp(np.array(bounds) - max(bounds))
                scores += weights / weights.sum() / group
            best = sorted(range(len(pages)), key=lambda page: (-scores[page], page))[:budget]
            chosen[-1].append(sorted(best))
    return chosen


def cosine(q, other, kv_heads):
    """C_i: of each layer and KV head, the mean over its query heads."""
    group = q.shape[1] // kv_heads
    similar = [
        [
            np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
            for a, b in zip(layer, before, strict=True)
        ]
        for layer, before in zip(q, other, strict=True)
    ]
    return np.array(similar).reshape(len(q), kv_heads, group).mean(axis=-1)


class PlainReader:
    """What each head reads, and when a run is repeated. A choice is (the queries that made it,
    numbers of pages), for a layer and head."""

    def __init__(
        self, kv_heads, layers, budget, tau_prefill, tau_decode, ahead=True, digest="mean-radius"
    ):
        self.heads = [(layer, head) for layer in range(layers) for head in range(kv_heads)]
        self.kv_heads = kv_heads
        self.budget = budget
        self.ahead = ahead
        self.digest = digest
        self.tau = {True: tau_prefill, False: tau_decode}
        # (layer, head) -> choice: what is read now, and next
        self.reads = {}
        self.next = {}
        self.corrected = None
        self.reruns = 0

    def choose(self, q, pages):
        """pages: {number: keys}"""
        numbers = sorted(pages)
        chosen = choose(q, [pages[number] for number in numbers], self.budget, self.digest)
        return {
            (layer, head): (q, [numbers[index] for index in chosen[layer][head]])
            for layer, head in self.heads
        }

    def wrong(self, q, pages, prefill):
        tau = self.tau[prefill]
        if tau is None or len(pages) <= self.budget:
            return set()
        return {
            (layer, head)
            for layer, head in self.heads
            if cosine(q, self.reads[layer, head][0], self.kv_heads)[layer, head] < tau
        }

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
        if not self.ahead:
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
