"""A toy model that is cheap to run, for streams of tens of thousands of chunks: its language graph
reads no page."""

import numpy as np
from support.fake_engines import FakeEngineSet

from vicort.runtime.core import UNIT_FRAMES


class QuickEngine:
    """A graph as a function, without a record of its runs."""

    def __init__(self, function):
        self._function = function

    def enqueue(self, bindings, stream):
        def work():
            for name, value in self._function(**bindings).items():
                bindings[name][...] = value

        return stream.run(work)


class QuickEngineSet(FakeEngineSet):
    def __init__(self, seed=0, **model_changes):
        super().__init__(seed, **model_changes)
        m = self.model
        random = np.random.default_rng(seed)
        self._project = {
            name: random.normal(size=(m.width, m.layers * heads * m.head_dim)).astype(np.float32)
            for name, heads in (("q", m.query_heads), ("k", m.kv_heads), ("v", m.kv_heads))
        }
        self._tile = random.normal(size=(m.unit_tokens, 3, m.width)).astype(np.float32)
        control = self.tokens.function
        self.vision = QuickEngine(self._see_quickly)
        self.tokens = QuickEngine(control)
        self.llm = QuickEngine(self._read_quickly)
        self.head = QuickEngine(self._choose)

    def _see_quickly(self, frames, **_):
        colors = (
            frames.reshape(len(frames) // UNIT_FRAMES, -1, 3).mean(axis=1, dtype=np.float32) / 255
            - 0.5
        )
        return {"features": np.einsum("uc,pcw->upw", colors, self._tile)}

    def _read_quickly(self, features, pos, ends, **_):
        m = self.model
        real = pos[:, 0] >= 0
        x = np.where(real[:, None], features, 0)
        q, k, v = (
            (x @ self._project[name]).reshape(len(x), m.layers, heads, m.head_dim).swapaxes(0, 1)
            for name, heads in (("q", m.query_heads), ("k", m.kv_heads), ("v", m.kv_heads))
        )
        queries = np.zeros((m.layers, m.observed_rows, m.query_heads, m.head_dim), np.float32)
        seen = q[:, real][:, -m.observed_rows :]
        queries[:, m.observed_rows - seen.shape[1] :] = seen
        return {
            "hidden": x[ends],
            "k": k,
            "v": v,
            "q": q[:, real].mean(axis=1),
            "queries": queries,
        }
