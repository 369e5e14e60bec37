"""`attend_with_kernel` in Triton's interpreter, beside the plain operator. Run as a script: Triton
decides at import whether it interprets.

Prints the largest difference of each case, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from unittest import mock

import numpy as np
import torch
from row_trees import random_tree  # type: ignore[import-not-found]  # beside this file, a script

from vicort.benchmarks.gpu.inductor import inductor_attention
from vicort.export.bounded_attention import attend
from vicort.export.onnx_function import rotary_frequencies

SECTIONS, THETA, LAYERS, HEADS, GROUP, PAGE = [4, 6, 6], 1e4, 3, 2, 2, 4
DIM = 2 * sum(SECTIONS)


def case(rows: int, pages: int, seed: int) -> list[torch.Tensor]:
    """q, k, v, pos, segment, until, pool, where, table; NaN wherever nothing may look."""
    random = np.random.default_rng(seed)
    slots = pages + 2
    q, k, v = (
        random.standard_normal((rows, heads, DIM), np.float32)
        for heads in (HEADS * GROUP, HEADS, HEADS)
    )
    pos = random.integers(0, 500, (rows, 3)).astype(np.int32)
    pos[1::4] = -1
    pool = random.standard_normal((slots, LAYERS, HEADS, 2, PAGE, DIM), np.float32)
    where = random.integers(0, 500, (slots, 1, 1, PAGE, 3)).astype(np.int32)
    where[random.random(where.shape[:-1]) < 0.3] = -1
    pool.swapaxes(3, 4)[np.broadcast_to(where[..., 0] < 0, (slots, LAYERS, HEADS, PAGE))] = np.nan
    for new in (q, k, v):
        new[pos[:, 0] < 0] = np.nan
    table = random.permutation(slots)[:pages].astype(np.int32)
    table[-1:] = -1
    segment, until = np.zeros(len(pos), np.int32), random_tree(random, rows)
    arrays = (q, k, v, pos, segment, until, pool, where, table[None, None, None])
    return [torch.from_numpy(array) for array in arrays]


def difference(rows: int, pages: int, layer: int, tiles: inductor_attention.KernelTiles) -> float:
    tensors, scale = case(rows, pages, rows), DIM**-0.5
    frequencies = torch.tensor(rotary_frequencies(THETA, DIM // 2))
    poisoned: Any = lambda *args, **options: torch.full(*args, torch.nan, **options)
    with (
        # of PyTorch, which takes compiled kernels only
        mock.patch.object(inductor_attention, "wrap_triton", lambda kernel: kernel),
        mock.patch.object(torch, "empty", poisoned),
    ):
        got = inductor_attention.attend_with_kernel(
            *tensors, frequencies, layer, scale, SECTIONS, tiles.numbers()
        )
    wanted = attend(*tensors, None, layer, scale, SECTIONS, THETA)
    return float((got - wanted).abs().nan_to_num(np.inf).max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    tile = inductor_attention.KernelTile(16, 16, 4, 1)
    found = {}
    for name, limit in (("at once", 1 << 60), ("rotated first", 1)):
        tiles = inductor_attention.KernelTiles(tile, tile, multiprocessors=7)
        with (
            mock.patch.object(inductor_attention, "ROTATED_FROM", limit),
            mock.patch.object(inductor_attention, "NARROW_VECTORS", 0),
            # the interpreter computes in float32
            mock.patch.object(inductor_attention, "may_rotate_first", return_value=True),
        ):
            found |= {
                f"{rows} rows, {pages} pages, {name}": difference(rows, pages, rows % LAYERS, tiles)
                for rows, pages in ((1, 9), (6, 3), (17, 1))
            }
    json.dump(found, sys.stdout)
