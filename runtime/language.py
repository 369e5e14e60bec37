"""The language graph with buffers of its own, run by one stream at a time: prefill, question and decode alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vicort.runtime.device import HostDevice, Stream
from vicort.runtime.engine import Engine
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.pool import EMPTY, Pool

ROW_STEP = 16  # rows of a run grow in steps of so many, so that engines meet few shapes; the rest is padding
FEATURE_ROW = -1  # token id of a row that comes from `features`


@dataclass(frozen=True)
class LanguageOutput:
    """Views of the run's buffers: read them before the next run."""

    logits: np.ndarray  # [V], of the last row
    k: np.ndarray  # [L, C, Hkv, D], not rotated
    v: np.ndarray  # [L, C, Hkv, D]
    q: np.ndarray  # [L, Hq, D], mean over the rows, not rotated


class LanguageRun:
    def __init__(self, engine: Engine, model: ModelSpec, device: HostDevice, pool: Pool) -> None:
        self._engine, self._model, self._pool = engine, model, pool
        rows = _padded(model.max_rows)
        dtype = pool.data.dtype
        self._tokens = device.empty((rows,), np.int32)
        self._features = device.empty((rows, model.width), dtype)
        self._positions = device.empty((rows, 3), np.int32)
        self._k = device.empty((model.layers * rows * model.kv_heads * model.head_dim,), dtype)
        self._v = device.empty(self._k.shape, dtype)
        self._q = device.empty((model.layers, model.query_heads, model.head_dim), np.float32)
        self._logits = device.empty((1, model.vocabulary), np.float32)
        self._features[:] = 0

    def __call__(
        self, tokens: np.ndarray | None, features: np.ndarray | None, positions: np.ndarray, table: np.ndarray, stream: Stream
    ) -> LanguageOutput:
        """Run C new rows over the pages of `table`.

        tokens: [C] int32, FEATURE_ROW where the row is one of `features`, None = all are; features: [C, width] or None;
        positions: [C, 3] int32; table: [L|1, Hkv|1, N] int32. C is at most max_rows.
        """
        count, model = len(positions), self._model
        rows = 1 if count == 1 else _padded(count)
        self._tokens[:rows] = FEATURE_ROW
        if tokens is not None:
            self._tokens[:count] = tokens
        if features is not None:
            self._features[:count] = features
        self._positions[:count] = positions
        self._positions[count:rows] = EMPTY
        shape = (model.layers, rows, model.kv_heads, model.head_dim)
        k, v = (buffer[: math.prod(shape)].reshape(shape) for buffer in (self._k, self._v))
        bindings = {
            "tokens": self._tokens[:rows],
            "features": self._features[:rows],
            "pos": self._positions[:rows],
            "pool": self._pool.data,
            "where": self._pool.where,
            "table": table,
            "logits": self._logits,
            "k": k,
            "v": v,
            "q": self._q,
        }
        self._engine.enqueue(bindings, stream).result()
        return LanguageOutput(self._logits[0], k[:, :count], v[:, :count], self._q)


def _padded(rows: int) -> int:
    return math.ceil(rows / ROW_STEP) * ROW_STEP
