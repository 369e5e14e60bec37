"""A stream through the toy model with FreeKV's memory, in words: tokens as they are, one list for
each layer and head, no pages on any device, no threads. What is read is said by `plain_freekv`."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from support.fake_engines import rotate
from support.plain_freekv import PlainChunks, PlainQuestion


class PlainStream:
    def __init__(self, engines, prompt, window, budget, tau_prefill, tau_decode, *rule):
        """rule: what else `PlainReader` takes."""
        self.engines = engines
        self.model = engines.model
        self.window = window
        m = self.model
        self.settings = m.kv_heads, m.layers, budget, tau_prefill, tau_decode, *rule
        self.chunk_reader = PlainChunks(*self.settings)
        self.first = len(prompt)
        self.origin = None
        self.newest = 0
        # chunks of (k, v, positions, first unit); {number: (k, v, positions)}
        self.recent = []
        self.pages = {}
        self.numbers, self.reruns = itertools.count(), 0
        self.prompt = [
            self.run(
                engines.embedding[prompt], np.repeat(np.arange(len(prompt))[:, None], 3, 1), []
            )[1:4]
        ]

    def keys(self):
        return {number: k for number, (k, _, _) in self.pages.items()}

    def watch(self, chunk):
        """An even number of frames, which are one chunk."""
        m, units = self.model, len(chunk) // 2
        rows = self.engines.vision.function(frames=np.stack([frame.image for frame in chunk]))[
            "features"
        ].reshape(-1, m.width)
        self.origin = chunk[0].time if self.origin is None else self.origin
        times = [
            int((chunk[2 * u].time - self.origin) * Fraction(m.tokens_per_second))
            for u in range(units)
        ]
        grid = itertools.product(times, range(m.fixed_grid.rows), range(m.fixed_grid.columns))
        positions = self.first + np.array(list(grid))
        while True:
            out = self.run(
                rows.astype(np.float32),
                positions,
                self.recent[-self.window :],
                self.chunk_reader.reads,
            )
            if not self.chunk_reader.must_rerun(out[4], self.keys()):
                break
            self.reruns += 1
        self.recent.append(out[1:4])
        self.newest = positions.max()
        for k, v, places in self.recent[: -self.window]:
            # units of the toy model are whole pages
            for start in range(0, len(places), m.page_tokens):
                page = slice(start, start + m.page_tokens)
                self.pages[next(self.numbers)] = k[:, page], v[:, page], places[page]
        self.recent = self.recent[-self.window :]
        self.chunk_reader.renew(self.keys())

    def ask(self, suffix, count):
        """Greedy tokens of an answer, and how often a run was made again."""
        reader, m = PlainQuestion(*self.settings), self.model
        start = max(self.newest, self.first + max(m.fixed_grid.rows, m.fixed_grid.columns) - 1) + 1
        tokens, text, rows = [], [], list(suffix)
        while len(tokens) < count + 1:
            positions = np.repeat(np.arange(start, start + len(rows))[:, None], 3, 1)
            while True:
                logits, k, v, places, q = self.run(
                    self.engines.embedding[rows], positions, [*self.recent, *text], reader.reads
                )
                if not reader.must_rerun(q, self.keys(), prefill=not tokens):
                    break
            text.append((k, v, places))
            start += len(rows)
            tokens.append(int(np.argmax(logits)))
            rows = tokens[-1:]
        return tokens[:count], reader.reruns

    def run(self, x, positions, shared, reads=None):
        """x [n, width] at positions [n, 3], over the prompt, what all heads share, and the pages
        that each reads.

        -> logits [V], k, v [L, n, Hkv, D] as they are stored, positions, mean q [L, Hq, D]
        """
        m = self.model
        shared = [*getattr(self, "prompt", []), *shared]
        x, ks, vs, qs = x.astype(np.float64), [], [], []
        for layer, weights in enumerate(self.engines._layers):
            sizes = {"q": m.query_heads, "k": m.kv_heads, "v": m.kv_heads}
            q, k, v = (
                (x @ weights[name]).reshape(len(x), heads, m.head_dim)
                for name, heads in sizes.items()
            )
            mixed = np.zeros(q.shape)
            for head in range(m.query_heads):
                kv = head // (m.query_heads // m.kv_heads)
                _, numbers = (reads or {}).get((layer, kv), (None, []))
                seen = [*shared, *(self.pages[number] for number in numbers)]
                old_k = [rotate(past[layer, :, kv], places) for past, _, places in seen]
                keys = np.concatenate([*old_k, rotate(k[:, kv], positions)])
                values = np.concatenate([*(past[layer, :, kv] for _, past, _ in seen), v[:, kv]])
                first = len(keys) - len(x)
                for row, query in enumerate(rotate(q[:, head], positions)):
                    scores = keys[: first + row + 1] @ query / m.head_dim**0.5
                    weight = np.exp(scores - scores.max())
                    mixed[row, head] = weight @ values[: first + row + 1] / weight.sum()
            x = x + mixed.reshape(len(x), -1) @ weights["o"]
            ks, vs, qs = [*ks, k], [*vs, v], [*qs, q.mean(axis=0)]
        logits = x[-1] @ self.engines.embedding.T
        return logits, np.float32(ks), np.float32(vs), positions, np.float32(qs)
