"""Runs the language graph for prefill, questions and decode steps, on one stream at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vicort.runtime.devices.device import Array, Device, Pool, Stream
from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.engines.buckets import padded_rows
from vicort.runtime.engines.engine_set import EngineSet

FEATURE_ROW = -1  # token id of a row that is a visual token


@dataclass(frozen=True)
class LanguageOutput:
    """Arrays on the device, with R rows including padding. The next run overwrites them."""

    hidden: Array  # [1,width], of the last row: what the output head takes
    k: Array  # [L,R,Hkv,D], not rotated
    v: Array  # [L,R,Hkv,D]
    q: Array  # [L,Hq,D] float32, mean over the rows, not rotated
    # [L,observed_rows,Hq,D] float32, not rotated: of the last rows, oldest first, after zeros if
    # there are fewer rows
    queries: Array


class LanguageRun:
    """The language graph and the output head, with their buffers."""

    def __init__(self, engines: EngineSet, device: Device, pool: Pool) -> None:
        self._engine = engines.llm
        self._head = engines.head
        self._embedding = engines.embedding
        self._model = model = engines.manifest.model
        self._device = device
        self._pool = pool
        rows, dtype = model.max_rows, engines.dtype
        self._features = device.zeros((rows, model.width), dtype)
        self._positions = device.empty((rows, 3), np.int32)
        self._segment = device.zeros((rows,), np.int32)  # one table for all rows
        self._table = device.empty((pool.data.shape[0],), np.int32)
        self._k = device.empty((model.layers * rows * model.kv_heads * model.head_dim,), dtype)
        self._v = device.empty(self._k.shape, dtype)
        self._q = device.empty((model.layers, model.query_heads, model.head_dim), np.float32)
        self._queries = device.empty(
            (model.layers, model.observed_rows, model.query_heads, model.head_dim), np.float32
        )
        self._hidden = device.empty((1, model.width), dtype)
        self._logits = device.empty((1, model.vocabulary), np.float32)

    def __call__(
        self,
        tokens: np.ndarray | None,
        features: Sequence[Array],
        positions: np.ndarray,
        table: np.ndarray,
        stream: Stream,
    ) -> LanguageOutput:
        """Run C new rows, at most max_rows, over the pages of `table`. Call from the stream's work.

        tokens: [C] int32, FEATURE_ROW where the row is taken from `features`; None = all rows are.
        features: arrays [n,width], which fill the first rows one after another; rows of tokens are
        written over them. positions: [C,3] int32. table: [L|1,Hkv|1,N] int32.
        """
        count, model = len(positions), self._model
        rows = 1 if count == 1 else min(padded_rows(count), model.max_rows)
        padded_positions = np.full((rows, 3), EMPTY, np.int32)
        padded_positions[:count] = positions
        self._device.upload(self._positions[:rows], padded_positions, stream)
        self._copy_features(features, stream)
        if tokens is not None:
            self._upload_tokens(tokens, stream)
        shape = (model.layers, rows, model.kv_heads, model.head_dim)
        k, v = (buffer[: math.prod(shape)].reshape(shape) for buffer in (self._k, self._v))
        scales = self._pool.scales
        bindings = {
            "features": self._features[:rows],
            "pos": self._positions[:rows],
            "segment": self._segment[:rows],
            "pool": self._pool.data,
            "where": self._pool.cell_positions,
            "table": self._upload_table(table[None], stream),
            **({} if scales is None else {"scales": scales}),
            "hidden": self._hidden,
            "k": k,
            "v": v,
            "q": self._q,
            "queries": self._queries,
        }
        self._engine.enqueue(bindings, stream)
        return LanguageOutput(self._hidden, k, v, self._q, self._queries)

    def logits(self, stream: Stream) -> Array:
        """[1,V] float32 after the last row of the newest run, on the device; the next call
        overwrites them. Call from the stream's work."""
        self._head.enqueue({"hidden": self._hidden, "logits": self._logits}, stream)
        return self._logits

    def _copy_features(self, features: Sequence[Array], stream: Stream) -> None:
        first = 0
        for rows in features:
            self._device.copy(self._features[first : first + rows.shape[0]], rows, stream)
            first += rows.shape[0]

    def _upload_tokens(self, tokens: np.ndarray, stream: Stream) -> None:
        """Upload the embeddings of text to its rows: an upload for each run of them."""
        dtype, rows = self._features.dtype, np.flatnonzero(tokens != FEATURE_ROW)
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if run.size:
                target = self._features[int(run[0]) : int(run[-1]) + 1]
                self._device.upload(target, self._embedding.rows(tokens[run], dtype), stream)

    def _upload_table(self, table: np.ndarray, stream: Stream) -> Array:
        """Always at the same address, because CUDA graphs replay addresses."""
        if table.size > self._table.shape[0]:
            self._table = self._device.empty((2 * table.size,), np.int32)
        uploaded = self._table[: table.size].reshape(table.shape)
        self._device.upload(uploaded, table, stream)
        return uploaded
