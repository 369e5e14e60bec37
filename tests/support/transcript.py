"""What the toy model says without a stream."""

import itertools
from fractions import Fraction

import numpy as np
from support.fake_engines import rotate


class Transcript:
    """The toy model in one pass over everything, without pages, chunks or a cache: the plain
    statement of `full-history`.

    Text that is asked, and what is answered, is seen by later text; video sees the prompt and
    earlier video alone.
    """

    def __init__(self, engines, prompt):
        self.engines, self.model = engines, engines.model
        self.rows = [
            (engines.embedding[token], (i, i, i), "prompt") for i, token in enumerate(prompt)
        ]
        self.first, self.origin = len(prompt), None

    def watch(self, video):
        m = self.model
        visual = self.engines.see(np.stack([frame.image for frame in video])).reshape(-1, m.width)
        shape = m.grid(*video[0].image.shape[:2])
        grid = itertools.product(range(len(video) // 2), range(shape.rows), range(shape.columns))
        self.origin = video[0].time if self.origin is None else self.origin
        for row, (unit, h, w) in zip(visual, grid, strict=True):
            t = int((video[2 * unit].time - self.origin) * Fraction(m.tokens_per_second))
            self.rows.append((row, (self.first + t, self.first + h, self.first + w), "vision"))

    def ask(self, suffix, count):
        """Greedy tokens of an answer; it and the question stay."""
        tokens = []
        for token in suffix:
            self._say(token)
        for _ in range(count):
            tokens.append(self._next())
            self._say(tokens[-1])
        return tokens

    def _say(self, token):
        position = max((max(place) for _, place, _ in self.rows), default=-1) + 1
        self.rows.append((self.engines.embedding[token], (position,) * 3, "text"))

    def say(self, tokens):
        """Text that stays."""
        for token in tokens:
            self._say(token)

    def chances(self):
        """[V] probabilities of the next token."""
        logits = self._logits()
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def _next(self):
        return int(np.argmax(self._logits()))

    def _logits(self):
        """[V] after the newest row."""
        m = self.model
        x = np.array([row for row, _, _ in self.rows], np.float64)
        places = np.array([place for _, place, _ in self.rows])
        kinds = np.array([kind for _, _, kind in self.rows])
        hidden = ~np.tri(len(x), dtype=bool) | (
            (kinds == "vision")[:, None] & (kinds == "text")[None]
        )
        for weights in self.engines._layers:
            q, k, v = (
                (x @ weights[name]).reshape(len(x), heads, m.head_dim)
                for name, heads in (("q", m.query_heads), ("k", m.kv_heads), ("v", m.kv_heads))
            )
            q, k = (rotate(t, np.array(places)[:, None]) for t in (q, k))
            k, v = (np.repeat(t, m.query_heads // m.kv_heads, axis=1) for t in (k, v))
            scores = np.einsum("chd,jhd->hcj", q, k) / m.head_dim**0.5
            scores[:, hidden] = -np.inf
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("hcj,jhd->chd", weight / weight.sum(-1, keepdims=True), v)
            x = x + mixed.reshape(len(x), -1) @ weights["o"]
        return x[-1] @ self.engines.embedding.T
