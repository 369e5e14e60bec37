"""The matrix products that are timed are those of the model."""

from collections import Counter

import pytest
import torch
from torch import nn

from vicort.benchmarks.common.spread import spread
from vicort.benchmarks.common.workload import bench_system
from vicort.benchmarks.cpu import arithmetic
from vicort.benchmarks.gpu.gpu_report import tables
from vicort.benchmarks.gpu.product_steps import Product, stages_of, timed
from vicort.benchmarks.gpu.real_models import SIZES
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.layers import Linear
from vicort.export.qwen2_5_vl.weights import load_models
from vicort.export.random_checkpoint import write_random

SMALL = {
    "vision": {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 150,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "text": {
        "vocab_size": 101,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
}


@pytest.mark.parametrize("side", [308, 448])
@pytest.mark.parametrize("size", ["3b", "7b"])
def test_they_are_the_arithmetic_of_a_chunk_without_attention(size: str, side: int) -> None:
    config = SIZES[size].config
    counted = arithmetic.of_chunk(config, side, 16, bench_system())
    for stage, products in stages_of(config, side).items():
        share = sum(each.times * each.gflop for each in products) * 1e9 / getattr(counted, stage)
        assert 0.9 < share < 1.06  # widths and rows are filled up


def test_their_shapes_are_those_of_the_exported_layers(tmp_path) -> None:
    size = SIZES["3b"]
    toy = type(size)(
        "toy", size.recipe, SMALL["vision"], SMALL["text"], tied=True, sections=(4, 6, 6)
    )
    folder = write_random(tmp_path / "checkpoint", toy.config, 56)
    vision, language, _, _ = load_models(folder, 56, 56, torch.float32)
    assert read_configuration(folder).vision.padded_intermediate == 256
    stages = stages_of(toy.config, 56)
    for model, stage in ((vision, "vision"), (language, "prefill")):
        combine(model, copies=True)
        there = Counter(
            tuple(module.weight.shape)
            for module in model.modules()
            if isinstance(module, Linear | nn.Linear) and isinstance(module.weight, torch.Tensor)
        )
        named = Counter[tuple[int, int]]()
        for each in stages[stage]:
            named[each.n, each.k] += each.times
        there.pop((SMALL["text"]["vocab_size"], SMALL["text"]["hidden_size"]), None)  # the head
        assert +named == there


def test_the_sum_counts_each_product_as_often_as_a_chunk_has_it() -> None:
    each = [Product("a", 100, 100, 100, 3), Product("only compared", 100, 100, 100, 0)]
    found = timed(each, 308, lambda product: spread([0.5]))
    assert (found["sum_ms"], found["tflop_s"]) == (1.5, 0.0)
    assert [row["times"] for row in found["products"]] == [3, 0]
    step = {"outcome": "passed", "gpu": "H100", "stages": {"vision": found}}
    (table,) = tables({"products": step})
    assert "all products of vision, 308x308: 1.50 ms a chunk, 0 TFLOP/s" in "\n".join(table.text())
