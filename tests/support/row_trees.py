"""Trees of new rows, and attention over them in a few lines of NumPy."""

from __future__ import annotations

import numpy as np


def random_tree(random: np.random.Generator, rows: int) -> np.ndarray:
    """`until` [rows] int32 of a random forest in depth-first order: the parent of a row is the row
    before it, an ancestor of that one, or none."""
    later = [rows, rows + 5, (1 << 31) - 1]  # all mean: seen by all later rows
    until, ancestors = np.full(rows, random.choice(later), np.int32), list[int]()
    for row in range(rows):
        if random.random() < 0.4:
            kept = int(random.integers(0, len(ancestors) + 1))
            until[ancestors[kept:]] = row
            del ancestors[kept:]
        ancestors.append(row)
    return until


def with_any_padding(random: np.random.Generator, until: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """`until` with any number where a row is padding: it must not matter."""
    numbers = random.choice([-(1 << 31), -1, 0, 3, (1 << 31) - 1], len(until))
    return np.where(pos[:, 0] >= 0, until, numbers).astype(np.int32)


def path(until: np.ndarray, row: int) -> list[int]:
    """The rows that `row` sees, itself included, in order."""
    return [other for other in range(row + 1) if row < until[other]]


def attention_in_one_place(arrays: dict[str, np.ndarray], layer: int, scale: float) -> np.ndarray:
    """Bounded attention where all tokens have the same position, so that rotations cancel out:
    [C,Hq,D] float64. arrays: by the operator's names, with `where` and `table` of one layer and
    head."""
    q, k, v = (arrays[name].astype(np.float64) for name in ("q", "k", "v"))
    pool = arrays["pool"].astype(np.float64)
    if arrays.get("scales") is not None:
        pool = pool * arrays["scales"][..., None]
    out, group = np.zeros(q.shape), q.shape[1] // k.shape[1]
    for row, head in np.ndindex(q.shape[:2]):
        seen = [each for each in path(arrays["until"], row) if arrays["pos"][each, 0] >= 0]
        if row not in seen:
            continue
        slots = [slot for slot in arrays["table"][arrays["segment"][row], 0, 0] if slot >= 0]
        filled = arrays["where"][slots, 0, 0, :, 0] >= 0  # [N,T]
        cached = pool[slots, layer, head // group].swapaxes(1, 2)[filled]  # [M,2,D]
        keys = np.concatenate([cached[:, 0], k[seen, head // group]])
        weights = np.exp(keys @ q[row, head] * scale)
        values = np.concatenate([cached[:, 1], v[seen, head // group]])
        out[row, head] = weights @ values / weights.sum()
    return out
