"""Packs quantised weights as published checkpoints have them, a number at a time, and whole
checkpoints of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each of the eight numbers of a word
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PlainWeight:
    """(values - zeros) * scales, as PackedWeight has it, but with an order in every case."""

    values: np.ndarray  # [out,in]
    zeros: np.ndarray  # [out,groups]
    scales: np.ndarray  # [out,groups] float16
    order: np.ndarray  # [in]
    bits: int

    def dequantised(self) -> Tensor:
        weight = np.empty(self.values.shape)
        for row, column in np.ndindex(*weight.shape):
            group = self.order[column]
            weight[row, column] = (
                float(self.values[row, column]) - float(self.zeros[row, group])
            ) * float(self.scales[row, group])
        return torch.from_numpy(weight.astype(np.float32))

    def awq(self) -> dict[str, Tensor]:
        return {
            "qweight": words(self.values.T, 4, AWQ_ORDER),
            "qzeros": words(self.zeros.T, 4, AWQ_ORDER),
            "scales": torch.from_numpy(self.scales.T.copy()),
        }

    def gptq(self, subtracted: bool = True) -> dict[str, Tensor]:
        zeros = words(self.zeros.T, self.bits)
        ones = int("1".zfill(self.bits) * (32 // self.bits), 2)
        return {
            "qweight": words(self.values, self.bits).T.contiguous(),
            "qzeros": zeros - ones if subtracted else zeros,
            "scales": torch.from_numpy(self.scales.T.copy()),
            "g_idx": torch.from_numpy(self.order.astype(np.int32)),
        }


def words(numbers: np.ndarray, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """[rows,n] -> [rows,n*bits/32] int32: number i of a word, or the one that `order` names, has
    the bits from i * bits on."""
    count = 32 // bits
    packed = np.zeros((numbers.shape[0], numbers.shape[1] // count), np.uint32)
    for row, word in np.ndindex(*packed.shape):
        for i in range(count):
            column = count * word + (order[i] if order else i)
            packed[row, word] |= np.uint32(int(numbers[row, column]) << (bits * i))
    return torch.from_numpy(packed.view(np.int32).copy())


def drawn(
    rows: int, columns: int, group: int, seed: int, bits: int = 4, act_order: bool = False
) -> PlainWeight:
    random = np.random.default_rng(seed)
    order = np.arange(columns) // group
    return PlainWeight(
        values=random.integers(0, 2**bits, (rows, columns)),
        zeros=random.integers(0, 2**bits, (rows, columns // group)),
        scales=random.uniform(0.005, 0.02, (rows, columns // group)).astype(np.float16),
        order=random.permutation(order) if act_order else order,
        bits=bits,
    )


def write_quantised(source: Path, packed: Path, plain: Path, method: str, group: int = 32) -> None:
    """Write two checkpoints to `packed` and `plain`: that of `source` with random quantised weights
    in its language model's layers, once packed and once dequantised. method: awq or gptq (in
    act-order)."""
    config = {"quant_method": method, "bits": 4, "group_size": group}
    config |= {"version": "gemm"} if method == "awq" else {"desc_act": True, "sym": False}
    config |= {"modules_to_not_convert": ["visual"]}
    weights = load_file(source / "model.safetensors")
    stored, dequantised = dict(weights), dict(weights)
    for seed, key in enumerate(linear_keys(weights)):
        rows, columns = weights[key].shape
        drawn_weight = drawn(rows, columns, group, seed, act_order=method == "gptq")
        leaves = drawn_weight.awq() if method == "awq" else drawn_weight.gptq()
        del stored[key]
        stored |= {f"{key.removesuffix('weight')}{leaf}": each for leaf, each in leaves.items()}
        dequantised[key] = drawn_weight.dequantised()
    for folder, tensors in ((packed, stored), (plain, dequantised)):
        shutil.copytree(source, folder)
        save_file(tensors, folder / "model.safetensors")
    path = packed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))


def linear_keys(weights: dict[str, Tensor]) -> Iterator[str]:
    """The keys of the language model's linear layers."""
    for key in sorted(weights):
        if "visual" not in key and key.split(".")[-2] in LINEAR and key.endswith(".weight"):
            yield key
