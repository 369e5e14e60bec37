"""Everything that a stream remembers, for comparisons to the last bit."""

from __future__ import annotations

import numpy as np

from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.session import Session


def remembered(session: Session) -> dict:
    """Pages with their keys, values and positions, by unit and not by slot; retrieval's index; the
    positions of what is to come; long-term memory and what the next chunk reads of it."""
    memory = session.inspect().memory
    query = np.random.default_rng(0)
    direction = query.normal(size=memory.model.width).astype(np.float32)
    state = {
        "pages": [
            (location.page, location.on_device, _content(memory, location))
            for unit in memory.tiers.units
            for location in memory.tiers.locations(unit)
        ],
        "chunks": [
            (each.chunk, list(each.units), each.pages, each.last, _bytes(each.queries))
            for each in memory.chunks
        ],
        "cosines": memory.chunks.cosines(direction).tolist(),
        "timeline": vars(memory.timeline),
        "pages in use": memory.pages_in_use()["host"],
    }
    if memory.long_term:
        state |= _long_term(memory, query)
    return state


def _content(memory, location) -> bytes:
    pool = memory.pool if location.on_device else memory.tiers.host_pool
    count = location.page.tokens
    data = np.asarray(pool.data)[location.slot][..., :count, :]
    return data.tobytes() + np.asarray(pool.cell_positions)[location.slot][..., :count, :].tobytes()


def _long_term(memory, query) -> dict:
    model, kept = memory.model, memory.long_term
    q = query.normal(size=(model.layers, model.query_heads, model.head_dim)).astype(np.float32)
    view = kept.view()
    selection = view.choose(q)
    view.release()
    return {
        "cells": kept.cells_in_use(),
        "oldest": kept.oldest,
        "chosen": _cells(kept.pool, selection.cells),
        "read by the next chunk": _cells(memory.pool, memory.ingest_table().slots),
    }


def _cells(pool, table) -> list[bytes]:
    """What each layer and head reads: keys and values of filled cells, with their positions."""
    layers, heads = np.asarray(pool.data).shape[1:3]
    table = np.broadcast_to(table, (layers, heads, table.shape[-1]))
    positions = np.asarray(pool.cell_positions)
    found = []
    for layer, head in np.ndindex(layers, heads):
        slots = table[layer, head][table[layer, head] >= 0]
        by_head = positions.shape[1] > 1
        places = positions[slots, layer if by_head else 0, head if by_head else 0]
        filled = places[..., 0] != EMPTY
        data = np.asarray(pool.data)[slots, layer, head].swapaxes(1, 2)[filled]
        found.append(data.tobytes() + places[filled].tobytes())
    return found


def _bytes(array) -> bytes | None:
    return None if array is None else array.tobytes()
