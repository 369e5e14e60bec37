"""A stream through the toy model with ReKV's memory (arXiv 2503.00540), in words: temporal units as
lists of tokens, no pages, no threads, and one layer after another, as in its public code."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from support.fake_engines import rotate


def nearest(q, keys, top):
    """Numbers of the units whose mean key has the largest dot product with q, ascending; of equals,
    the earlier. q: [Hq, D] of one layer; keys: of each unit [n, Hkv, D]."""
    group = len(q) // keys[0].shape[1]
    scores = []
    for unit in keys:
        mean = unit.astype(np.float64).mean(axis=0)
        scores.append(sum(float(query @ mean[head // group]) for head, query in enumerate(q)))
    return sorted(sorted(range(len(keys)), key=lambda unit: (-scores[unit], unit))[:top])


class PlainReKV:
    """Units of one second each, one time position apart."""

    def __init__(self, engines, prompt, window, top, consecutive=True):
        """window: chunks that a chunk attends to."""
        self.engines, self.model = engines, engines.model
        self.window, self.top, self.consecutive = window, top, consecutive
        self.units = []  # (k, v, positions): [L, n, Hkv, D] twice, [n, 3]
        self.chunk_units = []  # how many of them each chunk has
        self.first, self.origin = len(prompt), None
        self.prompt = None
        places = np.repeat(np.arange(len(prompt))[:, None], 3, 1)
        self.prompt = self.run(engines.embedding[prompt], places, lambda layer, q: [])[1]

    def watch(self, chunk):
        """An even number of frames, which are one chunk."""
        m, count = self.model, len(chunk) // 2
        images = np.stack([frame.image for frame in chunk])
        rows = self.engines.vision.function(frames=images)["features"].reshape(-1, m.width)
        self.origin = chunk[0].time if self.origin is None else self.origin
        rate = Fraction(m.tokens_per_second)
        times = [int((chunk[2 * u].time - self.origin) * rate) for u in range(count)]
        grid = itertools.product(times, range(m.fixed_grid.rows), range(m.fixed_grid.columns))
        positions = self.first + np.array(list(grid))
        recent = sum(self.chunk_units[-self.window :]) if self.window else 0
        seen = self.units[len(self.units) - recent :]
        _, (k, v, _), _ = self.run(
            rows.astype(np.float32),
            positions,
            lambda layer, q: [(k[layer], v[layer], places) for k, v, places in seen],
        )
        size = len(positions) // count
        for u in range(count):
            own = slice(u * size, (u + 1) * size)
            self.units.append((k[:, own], v[:, own], positions[own]))
        self.chunk_units.append(count)

    def choose(self, words, start, passes=None):
        """Numbers of the units that each layer reads. passes: None = each layer chooses while it
        runs, so that the layers above see its choice; else so many runs that read what the run
        before chose."""
        positions = np.repeat(np.arange(start, start + len(words))[:, None], 3, 1)
        choice = [[] for _ in range(self.model.layers)]

        def at_once(layer, q):
            choice[layer] = nearest(q, [k[layer] for k, _, _ in self.units], self.top)
            return self.read(layer, choice[layer])

        if passes is None:
            self.run(self.engines.embedding[words], positions, at_once)
            return choice
        for _ in range(passes):
            read = choice
            queries = self.run(
                self.engines.embedding[words],
                positions,
                lambda layer, q, read=read: self.read(layer, read[layer]),
            )[2]
            choice = [
                nearest(q, [k[layer] for k, _, _ in self.units], self.top)
                for layer, q in enumerate(queries)
            ]
        return choice

    def read(self, layer, numbers):
        newest = self.units[-1][2][0, 0]
        found = []
        for i, number in enumerate(numbers):
            k, v, places = self.units[number]
            if self.consecutive:
                places = places.copy()
                places[:, 0] = newest - (len(numbers) - 1 - i)
            found.append((k[layer], v[layer], places))
        return found

    @property
    def text_start(self):
        return int(max(places.max() for _, _, places in self.units)) + 1

    def ask(self, suffix, choice, count):
        """Greedy tokens of an answer that reads `choice` in each layer."""
        start, tokens, text, rows = self.text_start, [], [], list(suffix)
        while len(tokens) < count:
            positions = np.repeat(np.arange(start, start + len(rows))[:, None], 3, 1)
            logits, written, _ = self.run(
                self.engines.embedding[rows],
                positions,
                lambda layer, q: [
                    *self.read(layer, choice[layer]),
                    *((k[layer], v[layer], places) for k, v, places in text),
                ],
            )
            text.append(written)
            start += len(rows)
            tokens.append(int(np.argmax(logits)))
            rows = tokens[-1:]
        return tokens

    def run(self, x, positions, seen):
        """x [n, width] at positions [n, 3], over the prompt and what `seen` gives for a layer and
        its mean query [Hq, D]: (k, v [m, Hkv, D], positions [m, 3]) a piece.

        -> logits [V], (k, v [L, n, Hkv, D], positions), mean queries [L, Hq, D]
        """
        m = self.model
        x, keys, values, queries = x.astype(np.float64), [], [], []
        for layer, weights in enumerate(self.engines._layers):
            sizes = {"q": m.query_heads, "k": m.kv_heads, "v": m.kv_heads}
            q, k, v = (
                (x @ weights[name]).reshape(len(x), heads, m.head_dim)
                for name, heads in sizes.items()
            )
            queries.append(q.mean(axis=0))
            pieces = list(seen(layer, queries[-1]))
            if self.prompt:
                prompt_k, prompt_v, places = self.prompt
                pieces = [(prompt_k[layer], prompt_v[layer], places), *pieces]
            mixed = np.zeros(q.shape)
            for head in range(m.query_heads):
                own = head // (m.query_heads // m.kv_heads)
                old = [rotate(past[:, own], places) for past, _, places in pieces]
                all_k = np.concatenate([*old, rotate(k[:, own], positions)])
                all_v = np.concatenate([*(past[:, own] for _, past, _ in pieces), v[:, own]])
                before = len(all_k) - len(x)
                for row, query in enumerate(rotate(q[:, head], positions)):
                    scores = all_k[: before + row + 1] @ query / m.head_dim**0.5
                    weight = np.exp(scores - scores.max())
                    mixed[row, head] = weight @ all_v[: before + row + 1] / weight.sum()
            x = x + mixed.reshape(len(x), -1) @ weights["o"]
            keys.append(k)
            values.append(v)
        written = np.float32(keys), np.float32(values), positions
        return x[-1] @ self.engines.embedding.T, written, np.float32(queries)
