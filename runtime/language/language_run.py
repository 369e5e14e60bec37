"""Runs the language graph for prefill, questions and decode steps, on one stream at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vicort.runtime.devices.device import Array, Device, Pool, Stream
from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.engines.buckets import padded_ends, padded_rows
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import MAX_ENDS

FEATURE_ROW = -1  # token id of a row that is a visual token


@dataclass(frozen=True)
class LanguageOutput:
    """Arrays on the device, with R rows including padding. The next run overwrites them."""

    hidden: Array  # [E,width], of the rows that were asked for: what the output head takes
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
        self._until = device.empty((rows,), np.int32)
        self._ends = device.empty((1,), np.int32)
        self._table = device.empty((pool.data.shape[0],), np.int32)
        self._k = device.empty((model.layers * rows * model.kv_heads * model.head_dim,), dtype)
        self._v = device.empty(self._k.shape, dtype)
        self._q = device.empty((model.layers, model.query_heads, model.head_dim), np.float32)
        self._queries = device.empty(
            (model.layers, model.observed_rows, model.query_heads, model.head_dim), np.float32
        )
        self._hidden = device.empty((1, model.width), dtype)
        self._logits = device.empty((1, model.vocabulary), np.float32)
        self._newest = self._hidden  # of the newest run

    def __call__(
        self,
        tokens: np.ndarray | None,
        features: Sequence[Array],
        positions: np.ndarray,
        table: np.ndarray,
        stream: Stream,
        until: np.ndarray | None = None,
        ends: Sequence[int] = (),
    ) -> LanguageOutput:
        """Run C new rows, at most max_rows, over the pages of `table`. Call from the stream's work.

        tokens: [C] int32, FEATURE_ROW where the row is taken from `features`; None = all rows are.
        features: arrays [n,width], which fill the first rows one after another; rows of tokens are
        written over them. positions: [C,3] int32. table: [L|1,Hkv|1,N] int32. until: [C] int32, the
        first row after those that see a row; None = all later rows do. ends: at most MAX_ENDS
        rows whose hidden states leave; none = the last one.
        """
        count, model = len(positions), self._model
        rows = 1 if count == 1 else min(padded_rows(count), model.max_rows)
        padded_positions = np.full((rows, 3), EMPTY, np.int32)
        padded_positions[:count] = positions
        self._device.upload(self._positions[:rows], padded_positions, stream)
        seen = np.full(rows, rows, np.int32)
        if until is not None:
            seen[:count] = until
        self._device.upload(self._until[:rows], seen, stream)
        ends_array, hidden = self._upload_ends(ends or (count - 1,), stream)
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
            "until": self._until[:rows],
            "ends": ends_array,
            "pool": self._pool.data,
            "where": self._pool.cell_positions,
            "table": self._upload_table(table[None], stream),
            **({} if scales is None else {"scales": scales}),
            "hidden": hidden,
            "k": k,
            "v": v,
            "q": self._q,
            "queries": self._queries,
        }
        self._engine.enqueue(bindings, stream)
        self._newest = hidden
        return LanguageOutput(hidden, k, v, self._q, self._queries)

    def logits(self, stream: Stream) -> Array:
        """[E,V] float32 after each of the newest run's `ends`, in their order, on the device; the
        next call overwrites them. Call from the stream's work."""
        hidden = self._newest
        logits = self._logits[: hidden.shape[0]]
        self._head.enqueue({"hidden": hidden, "logits": logits}, stream)
        return logits

    def _upload_ends(self, ends: Sequence[int], stream: Stream) -> tuple[Array, Array]:
        """The rows `ends` on the device, [E] int32, the last one repeated up to a size that runs
        share; and an array for their hidden states, [E,width]."""
        count = min(padded_ends(len(ends)), MAX_ENDS)
        if count > self._ends.shape[0]:
            width, vocabulary = self._hidden.shape[1], self._logits.shape[1]
            self._ends = self._device.empty((count,), np.int32)
            self._hidden = self._device.empty((count, width), self._hidden.dtype)
            self._logits = self._device.empty((count, vocabulary), np.float32)
        padded = np.full(count, ends[-1], np.int32)
        padded[: len(ends)] = ends
        self._device.upload(self._ends[:count], padded, stream)
        return self._ends[:count], self._hidden[:count]

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
