"""torch.export takes the modules as they are, with the dimensions that vary left open."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from support.reference_model import random_frames, write_random_checkpoint
from support.sizes import slow
from torch.export import Dim, export

from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_language, load_vision
from vicort.export.token_control import TokenControlGraph
from vicort.runtime.core import TokenMode


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    # two layers each, because tracing takes a time that grows with layers
    vision = {"depth": 2, "fullatt_block_indexes": [1]}
    write_random_checkpoint(folder, "tiny", seed=1, vision=vision, text={"num_hidden_layers": 2})
    return folder


def run(program: torch.export.ExportedProgram, *args: torch.Tensor):
    """The exported graph at other sizes than its example's; torch.export guards against sizes of
    one, where the graph is right too."""
    with torch.no_grad():
        return program.module(check_guards=False)(*args)


def used_ops(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(("height", "width"), [(84, 140), *slow((112, 112))])
def test_vision(tiny, height, width):
    vision = load_vision(tiny, read_configuration(tiny), height, width)
    program = export(
        vision,
        (random_frames(3, height, width, seed=0),),
        dynamic_shapes=({0: 2 * Dim("units", min=1, max=64)},),
    )
    for units in (1, 2, 5):
        frames = random_frames(units, height, width, seed=units)
        with torch.no_grad():
            torch.testing.assert_close(run(program, frames), vision(frames), atol=1e-6, rtol=0)


def language_inputs(
    config, rows: int, slots: int, read: int, layers: int = 1, heads: int = 1
) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(rows)
    ints = lambda low, high, *shape: torch.randint(low, high, shape, generator=random).int()
    pool = torch.randn(
        slots, config.layers, config.kv_heads, 2, 4, config.head_dim, generator=random
    )
    pos = ints(0, 20, rows, 3)
    pos[rows - rows // 3 :] = -1
    features = torch.randn(rows, config.width, generator=random)
    where, table = ints(-1, 20, slots, layers, heads, 4, 3), ints(-1, slots, 2, layers, heads, read)
    segment, ends = ints(0, 2, rows), ints(0, rows, 1 + rows // 4)
    until = torch.arange(1, rows + 1).int() + ints(0, rows, rows)
    return features, pos, segment, until, ends, pool, where, table


def test_language(tiny):
    config = read_configuration(tiny)
    language = load_language(tiny, config)
    names = ("where_layers", "where_heads", "table_layers", "table_heads")
    rows, slots, read, ends, *others = (
        Dim(name, min=1, max=512) for name in ("rows", "slots", "read", "ends", *names)
    )
    shapes = (
        {0: rows},
        {0: rows},
        {0: rows},
        {0: rows},
        {0: ends},
        {0: slots},
        {0: slots, 1: others[0], 2: others[1]},
        {1: others[2], 2: others[3], 3: read},
    )
    example = language_inputs(
        config.language, 5, 6, 3, config.language.layers, config.language.kv_heads
    )
    program = export(language, example, dynamic_shapes=shapes)
    assert (
        sum("bounded_attention" in str(node.target) for node in program.graph.nodes)
        == config.language.layers
    )
    for size in ((1, 1, 1), (7, 3, 2), (2, 9, 5, 4, 1), (40, 2, 2, 1, 2)):
        inputs = language_inputs(config.language, *size)
        with torch.no_grad():
            for exported, eager in zip(run(program, *inputs), language(*inputs), strict=True):
                torch.testing.assert_close(exported, eager, atol=1e-5, rtol=0)


def test_token_control():
    inputs = lambda units, mode=0: (
        torch.randn(units, 6, 8),
        torch.tensor([0.2]),
        torch.tensor([2], dtype=torch.int32),
        torch.randn(6, 8),
        torch.tensor([mode], dtype=torch.int32),
    )
    program = export(
        TokenControlGraph(),
        inputs(3),
        dynamic_shapes=({0: Dim("units", min=1, max=64)}, None, None, None, None),
    )
    # nothing whose shape, or layer, depends on data
    assert not any("nonzero" in op or "sort" in op for op in used_ops(program))
    for units, mode in itertools.product((1, 2, 7), TokenMode):
        case = inputs(units, mode)
        for exported, eager in zip(run(program, *case), TokenControlGraph()(*case), strict=True):
            torch.testing.assert_close(exported, eager)
