"""Page tables of the language graph: slots to read, padded with -1 to one of few lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vicort.runtime.engines.buckets import padded_slots

NONE = -1  # in a table or a selection: no page, no cell


def pad_table(slots: Sequence[int]) -> np.ndarray:
    """[1, 1, N] int32, padded with -1."""
    table = np.full((1, 1, padded_slots(len(slots))), NONE, np.int32)
    table[0, 0, : len(slots)] = slots
    return table


def concat_tables(shared: Sequence[int], own: np.ndarray, length: int) -> np.ndarray:
    """A table [L, Hkv, length] int32.

    shared: [n] slots that all layers and heads read; own: [L, Hkv, m] slots that each reads too.
    """
    table = np.full((*own.shape[:2], length), NONE, np.int32)
    table[:, :, : len(shared)] = shared
    table[:, :, len(shared) : len(shared) + own.shape[2]] = own
    return table
