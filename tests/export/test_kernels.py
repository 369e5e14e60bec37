"""The GPU kernels: in Triton's interpreter against the PyTorch operator, and compiled ahead of
time. Nothing here runs on a GPU."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import processes
from support.c_programs import compiler
from support.interpreter import ARGUMENTS, Interpreter, stand_in
from support.row_trees import attention_in_one_place, path, random_tree, with_any_padding
from support.shared import once
from support.sizes import examples, is_thorough, slow

from vicort.benchmarks.gpu.compiled_kernels import (
    COVERED,
    RESULT,
    faults,
    loops,
    measure,
    source_hash,
)
from vicort.export.bounded_attention import bounded_attention
from vicort.export.kernels import compile as compiling
from vicort.export.kernels.architectures import ARCHITECTURES, DEFAULT, SHARED_KIB, of_targets
from vicort.export.kernels.compile import (
    Built,
    Task,
    Tile,
    build,
    compile_kernels,
    pack,
    plan_tasks,
)
from vicort.export.kernels.compile_task import KERNELS
from vicort.export.onnx_function import rotary_frequencies
from vicort.runtime.devices.cuda.loaded_kernels import PARAMETERS
from vicort.runtime.devices.int8_vectors import quantised
from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.kernels import AttentionPlan, Kernels, KernelSpec

TILES = {"wide": (32, 16), "narrow": (16, 16)}
TYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# of outputs that are means of values around 1
TOLERANCE = {"float32": 3e-5, "bfloat16": 0.03, "float16": 4e-3}
POISON = (np.nan, np.inf)
INPUTS = ("q", "k", "v", "pos", "segment", "until", "pool", "where", "table")


@pytest.fixture(scope="module")
def interpreter():
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(
            f"Triton {triton.__version__}'s interpreter rounds a fused multiply-add twice: "
            "install 3.9"
        )
    child = Interpreter()
    yield child
    child.close()


@dataclass(frozen=True)
class Case:
    """One call of the op: arrays by the op's names, floats in float32."""

    arrays: dict[str, np.ndarray]
    spec: KernelSpec
    theta: float
    layer: int
    scale: float
    multiprocessors: int = 3
    rotated: bool = False  # by the pair of kernels that rotates keys first

    def plan(self, data: bytes) -> AttentionPlan:
        rows, (segments, _, _, pages) = len(self.arrays["q"]), self.arrays["table"].shape
        plan = Kernels.parse(data).plan(
            rows, pages, self.multiprocessors, (9, 0), segments, self.rotated
        )
        assert (plan.scratch is not None) == self.rotated
        return plan

    @property
    def typed(self) -> dict[str, np.ndarray]:
        kind = TYPES[self.spec.dtype]
        return {
            name: array.astype(kind) if name in ("q", "k", "v", *self._floats) else array
            for name, array in self.arrays.items()
        }

    @property
    def _floats(self) -> tuple[str, ...]:
        return ("pool",) if self.spec.kv == "float" else ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*INPUTS, *(("scales",) if self.spec.kv == "int8" else ()))

    def expected(self) -> np.ndarray:
        """What the PyTorch operator gives in float32 for the inputs as rounded to the kernel's
        type."""
        arrays = {
            name: array if array.dtype in (np.int32, np.int8) else array.astype(np.float32)
            for name, array in self.typed.items()
        }
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()
        }
        return bounded_attention(
            **{"scales": None} | tensors,
            layer=self.layer,
            scale=self.scale,
            sections=list(self.spec.sections),
            theta=self.theta,
            interleaved=self.spec.interleaved,
        ).numpy()

    def run(self, interpreter: Interpreter) -> np.ndarray:
        """What the kernels give, into memory that was NaN."""
        arrays = self.typed
        data = stand_in(self.spec, TILES)
        gpu: dict[str, Any] = {"capability": (9, 0), "multiprocessors": self.multiprocessors}
        gpu["rotate_first"] = self.rotated
        plan = self.plan(data)
        arrays["out"] = np.full(arrays["q"].shape, np.nan, arrays["q"].dtype)
        arrays["workspace"] = np.full(plan.workspace_bytes // 4 + 8, np.nan, np.float32)
        shapes = {f"{name}_shape": arrays[name].shape for name in ("pool", "where", "table")}
        left = interpreter.run(
            data,
            "attention",
            arrays,
            {"rows": len(arrays["q"]), "layer": self.layer, "scale": self.scale, **shapes},
            gpu,
        )
        assert np.isnan(left["workspace"][-8:]).all()
        for name in self.inputs:
            np.testing.assert_array_equal(
                left[name].view(np.uint8),
                arrays[name].view(np.uint8),
                err_msg=f"{name} was written to",
            )
        return left["out"].astype(np.float32)


def make_spec(**changes: Any) -> KernelSpec:
    parts: dict[str, Any] = {
        "kv_heads": 2,
        "groups": 2,
        "head_dim": 32,
        "page_tokens": 4,
        "dtype": "float32",
        "sections": (4, 6, 6),
    }
    parts |= changes
    return KernelSpec(
        frequencies=tuple(rotary_frequencies(parts.pop("theta", 1e4), parts["head_dim"] // 2)),
        **parts,
    )


def random_case(spec: KernelSpec, theta: float, random: np.random.Generator, **sizes: Any) -> Case:
    """Poison wherever the op may not look: padding rows, empty cells, slots that no table names,
    other layers."""
    rows, pages, layers, slots = (sizes[name] for name in ("rows", "pages", "layers", "slots"))
    where_dims, table_dims = sizes["where_dims"], sizes["table_dims"]
    heads, dim, cells = spec.kv_heads, spec.head_dim, spec.page_tokens
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    places = lambda *shape: random.integers(0, sizes["positions"], size=(*shape, 3)).astype(
        np.int32
    )
    pos, where = places(rows), places(slots, *where_dims, cells)
    pos[random.random(rows) < sizes["padding"]] = -1
    where[random.random(where.shape[:-1]) < sizes["empty"]] = -1
    segments = sizes.get("segments", 1)
    table = random.integers(0, slots, size=(segments, *table_dims, pages)).astype(np.int32)
    table[random.random(table.shape) < sizes["none"]] = -1
    layer = sizes["layer"]
    arrays = {
        "q": normal(rows, heads * spec.groups, dim),
        "k": normal(rows, heads, dim),
        "v": normal(rows, heads, dim),
        "pos": pos,
        "segment": np.sort(random.integers(0, segments, rows)).astype(np.int32),
        "until": with_any_padding(random, random_tree(random, rows), pos),
        "pool": normal(slots, layers, heads, 2, cells, dim),
        "where": where,
        "table": table,
    }
    if sizes.get("mixed"):
        random.shuffle(arrays["segment"])
    numbers = "pool"
    if spec.kv == "int8":
        numbers = "scales"
        arrays["pool"], arrays["scales"] = quantised(arrays["pool"])
    for name in ("q", "k", "v"):
        arrays[name][pos[:, 0] < 0] = sizes["poison"]
    pick = lambda count, index: 0 if count == 1 else index
    for head in range(heads):
        named = table[:, pick(table_dims[0], layer), pick(table_dims[1], head)]
        taken = where[:, pick(where_dims[0], layer), pick(where_dims[1], head), :, 0] >= 0
        used = taken & np.isin(np.arange(slots), named)[:, None]  # [P,T]
        unused = np.broadcast_to(~used[:, None], (slots, 2, cells))
        arrays[numbers][:, layer, head][unused] = sizes["poison"]
    arrays[numbers][:, np.arange(layers) != layer] = sizes["poison"]
    return Case(
        arrays,
        spec,
        theta,
        layer,
        sizes.get("scale", dim**-0.5),
        sizes.get("multiprocessors", 3),
        sizes.get("rotated", False),
    )


@st.composite
def cases(draw, dims=(32,), most_rows: int = 9, most_pages: int = 6, rotated=None) -> Case:
    pick = lambda *values: draw(st.sampled_from(values))
    size = lambda low, high: draw(st.integers(low, high))
    dim = pick(*dims)
    cut = sorted((size(0, dim // 2), size(0, dim // 2)))
    theta, heads, layers = pick(1e4, 1e6), size(1, 3), size(1, 3)
    spec = make_spec(
        theta=theta,
        kv_heads=heads,
        groups=pick(8, 7, 1, 2, 4),
        head_dim=dim,
        page_tokens=pick(4, 8, 16, 32),
        dtype=pick("float32", "bfloat16", "float16"),
        kv=pick("float", "int8"),
        sections=(cut[0], cut[1] - cut[0], dim // 2 - cut[1]),
        interleaved=pick(False, True),
    )
    return random_case(
        spec,
        theta,
        np.random.default_rng(size(0, 2**32)),
        rows=size(1, most_rows),
        pages=size(0, most_pages),
        layers=layers,
        slots=size(1, 6),
        layer=size(0, layers - 1),
        segments=size(1, 3),
        mixed=pick(False, True),
        where_dims=(pick(1, layers), pick(1, heads)),
        table_dims=(pick(1, layers), pick(1, heads)),
        positions=pick(50, 100_000),
        padding=pick(0, 0.4, 1),
        empty=pick(0, 0.5, 1),
        none=pick(0, 0.5, 1),
        poison=pick(*POISON),
        multiprocessors=pick(1, 3, 40),
        rotated=draw(st.booleans()) if rotated is None else rotated,
    )


def check(case: Case, interpreter: Interpreter) -> None:
    np.testing.assert_allclose(
        case.run(interpreter), case.expected(), atol=TOLERANCE[case.spec.dtype], rtol=0
    )


quick = settings(
    max_examples=examples(20),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@quick
@given(case=cases())
def test_the_kernel_is_the_operator(interpreter, case):
    check(case, interpreter)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(quick, max_examples=examples(150))
@given(case=cases(dims=(32, 128), most_rows=40, most_pages=24))
def test_the_kernel_is_the_operator_wherever_one_looks(interpreter, case):
    check(case, interpreter)


def full_case(spec: KernelSpec, rows: int, pages: int, **changes: Any) -> Case:
    """Nothing empty, no padding, far positions."""
    sizes = {
        "rows": rows,
        "pages": pages,
        "layers": 2,
        "slots": 3,
        "layer": 1,
        "where_dims": (1, 1),
        "table_dims": (1, 1),
    }
    sizes |= {"positions": 120_000, "padding": 0, "empty": 0, "none": 0, "poison": np.nan} | changes
    return random_case(spec, 1e4, np.random.default_rng(1), **sizes)


@pytest.fixture(params=[False, True], ids=["at once", "rotated first"])
def rotated(request) -> bool:
    return request.param


@pytest.mark.parametrize(
    ("dtype", "groups", "kv"),
    [
        ("bfloat16", 7, "int8"),
        ("float16", 8, "float"),
        ("float32", 8, "int8"),
        *slow(("bfloat16", 7, "float"), ("float16", 8, "int8"), ("float32", 8, "float")),
    ],
)
def test_real_head_width(interpreter, dtype, groups, kv, rotated):
    sections = (16, 24, 24)
    spec = make_spec(
        kv_heads=1,
        groups=groups,
        head_dim=128,
        page_tokens=16,
        dtype=dtype,
        sections=sections,
        kv=kv,
    )
    case = full_case(spec, rows=9, pages=3, padding=0.2, empty=0.2, rotated=rotated)
    check(case, interpreter)


@pytest.mark.parametrize("rows", [1, 9])
def test_shares_of_the_keys_are_merged(interpreter, rows, rotated):
    pages = 30 if is_thorough() else 12
    case = full_case(make_spec(groups=8), rows=rows, pages=pages, rotated=rotated)
    together, apart = replace(case, multiprocessors=1), replace(case, multiprocessors=40)
    data = stand_in(case.spec, TILES)
    assert together.plan(data).shares < apart.plan(data).shares
    np.testing.assert_allclose(apart.run(interpreter), together.run(interpreter), atol=2e-6)


@pytest.mark.parametrize("multiprocessors", [1, 40])  # one share, or several
def test_a_value_that_counts_may_be_nan(interpreter, multiprocessors, rotated):
    """Only what is empty or padding is never looked at; and a padding row is zero whatever else
    there is."""
    case = full_case(make_spec(), rows=3, pages=9, multiprocessors=multiprocessors, rotated=rotated)
    case.arrays["v"][1, 0, 3] = np.nan
    case.arrays["pos"][2], case.arrays["until"][:] = -1, 3
    case.arrays["pool"][case.arrays["table"][0, 0, 0, 0], 1, 1, 1, 0, 5] = np.nan
    out = case.run(interpreter)
    assert np.isnan(out[1, :2, 3]).all()
    assert np.isnan(out[:2, 2:, 5]).all()
    np.testing.assert_array_equal(np.isnan(out), np.isnan(case.expected()))


DIMS = ((1, 2), (2, 1), (2, 2))


@pytest.mark.parametrize(
    ("where_dims", "table_dims"),
    [
        *(((2, 2), dims) for dims in DIMS),
        ((1, 2), (2, 1)),
        *slow(*((where, table) for where in DIMS[:2] for table in DIMS if where == table)),
        *slow(((1, 2), (2, 2)), ((2, 1), (1, 2)), ((2, 1), (2, 2))),
    ],
)
def test_layers_and_heads_have_places_and_tables_of_their_own(
    interpreter, where_dims, table_dims, rotated
):
    sizes = {"where_dims": where_dims, "table_dims": table_dims, "rotated": rotated}
    check(full_case(make_spec(), rows=2, pages=3, **sizes), interpreter)


def test_tables_of_cos_and_sin_give_the_same(interpreter, rotated):
    case = full_case(make_spec(groups=7), rows=5, pages=4, positions=900, rotated=rotated)
    tables = replace(case, spec=case.spec.model_copy(update={"positions": 900}))
    np.testing.assert_allclose(tables.run(interpreter), case.run(interpreter), atol=2e-6)


@pytest.mark.parametrize("end", [1.0, 100.0, 131_072.0, 262_143.0])
def test_cos_and_sin_are_accurate_far_out(interpreter, end):
    angles = np.random.default_rng(0).uniform(0, end, 1 << 16).astype(np.float32)
    angles[:3] = 0, end, np.pi / 4
    cos, sin = interpreter.cos_sin(angles)
    wide = angles.astype(np.float64)
    assert max(np.abs(cos - np.cos(wide)).max(), np.abs(sin - np.sin(wide)).max()) < 2e-7


@pytest.mark.parametrize("multiprocessors", [1, 40])  # one share, or several
def test_each_block_is_what_it_is_alone(interpreter, multiprocessors, rotated):
    """Questions that run together, each with a table of its own."""
    pages = 6 if is_thorough() else 4
    case = full_case(make_spec(groups=4), rows=7, pages=pages, segments=3, rotated=rotated)
    case = replace(case, multiprocessors=multiprocessors)
    case.arrays["segment"][:] = 0, 0, 1, 1, 1, 2, 2
    case.arrays["until"][:] = 2, 2, 5, 5, 5, 7, 7
    together = case.run(interpreter)
    for number in range(3):
        mine = np.flatnonzero(case.arrays["segment"] == number)
        table = case.arrays["table"][number : number + 1]
        changes = {"table": table, "segment": np.zeros(len(mine), np.int32)}
        single = alone(case, mine, **changes).run(interpreter)
        np.testing.assert_allclose(together[mine], single, atol=2e-6)


def alone(case: Case, rows: Sequence[int], **changes: np.ndarray) -> Case:
    """Some rows of a case in a run of their own, one after another."""
    mine = {name: case.arrays[name][rows] for name in ("q", "k", "v", "pos", "segment")}
    mine["until"] = np.full(len(rows), len(rows), np.int32)
    return replace(case, arrays=case.arrays | mine | changes)


@pytest.mark.slow
@settings(quick, max_examples=examples(20))
@given(case=cases())
def test_a_node_of_a_tree_among_the_others_is_its_path_alone(interpreter, case):
    """With a table for each of the path's rows, and padding inside blocks."""
    row = len(case.arrays["pos"]) - 1
    if case.arrays["pos"][row, 0] < 0:
        case.arrays["until"][row] = row + 1
        for name in ("pos", "q", "k", "v"):
            case.arrays[name][row] = 1
    mine = path(case.arrays["until"], row)
    found, single = case.run(interpreter)[row], alone(case, mine).run(interpreter)[-1]
    np.testing.assert_allclose(found, single, atol=TOLERANCE[case.spec.dtype], rtol=0)


TREES = {
    "a question and its choices, and another": [8, 8, 4, 4, 6, 6, 8, 8, 10, 10],
    "nothing but siblings": [1, 2, 3, 4, 5],
}


@pytest.mark.parametrize("multiprocessors", [1, 40])  # one share, or several
@pytest.mark.parametrize("until", [*list(TREES.values())[:1], *slow(*list(TREES.values())[1:])])
def test_a_row_of_a_tree_sees_what_the_rule_in_numpy_says(
    interpreter, until, multiprocessors, rotated
):
    sizes = {"segments": 2, "multiprocessors": multiprocessors, "rotated": rotated}
    case = full_case(make_spec(groups=4), rows=len(until), pages=5, **sizes)
    assert (case.plan(stand_in(case.spec, TILES)).shares > 1) == (multiprocessors > 1)
    case.arrays["until"][:] = until
    for name in ("pos", "where"):
        case.arrays[name][:] = 7
    case.arrays["pos"][3], case.arrays["where"][1, 0, 0, 2] = -1, -1
    wanted = attention_in_one_place(case.arrays, case.layer, case.scale)
    np.testing.assert_allclose(case.run(interpreter), wanted, atol=TOLERANCE["float32"], rtol=0)


@settings(quick, max_examples=examples(8))
@given(case=cases(rotated=False))
def test_keys_may_be_rotated_first(interpreter, case):
    """Both ways round keys to the model's type after they are rotated, so they differ as sums of
    float32 in another order do, and then by the rounding of weights to that type."""
    at_once, rotated = (replace(case, rotated=first).run(interpreter) for first in (False, True))
    allowed = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3}[case.spec.dtype]
    np.testing.assert_allclose(rotated, at_once, atol=allowed, rtol=allowed)


def test_after_a_call_that_was_interrupted_the_next_reply_is_its_own(interpreter, monkeypatch):
    def interrupted(file):
        raise KeyboardInterrupt

    first, second = (np.full(64, angle, np.float32) for angle in (0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            interpreter.cos_sin(first)
    np.testing.assert_allclose(interpreter.cos_sin(second)[1], np.sin(second), atol=1e-6)


@settings(quick, max_examples=examples(15))
@given(data=st.data())
def test_new_tokens_land_in_their_cells(interpreter, data):
    size = lambda low, high: data.draw(st.integers(low, high))
    random = np.random.default_rng(size(0, 2**32))
    dtype = data.draw(st.sampled_from(list(TYPES)))
    spec = make_spec(
        kv_heads=size(1, 3), page_tokens=data.draw(st.sampled_from([4, 8, 16, 32])), dtype=dtype
    )
    pages, layers, rows, cells = size(1, 5), size(1, 3), size(1, 9), spec.page_tokens
    count = size(0, min(rows, pages * cells))
    slots, places = np.divmod(
        random.permutation(pages * cells)[:count].astype(np.int32), np.int32(cells)
    )
    slots[random.random(count) < 0.2] = -1
    new = random.normal(size=(2, layers, rows, spec.kv_heads, 32)).astype(TYPES[dtype])
    pool = random.normal(size=(pages, layers, spec.kv_heads, 2, cells, 32)).astype(TYPES[dtype])
    arrays = {"k": new[0], "v": new[1], "slots": slots, "cells": places, "pool": pool}
    values = {"count": count, "rows": rows, "layers": layers}
    left = interpreter.run(
        stand_in(spec, TILES),
        "scatter_tokens",
        arrays,
        values,
        {"capability": (9, 0), "multiprocessors": 3},
    )
    wanted = pool.copy()
    for token, (slot, place) in enumerate(zip(slots, places, strict=True)):
        if slot >= 0:
            wanted[slot, :, :, :, place] = new[:, :, token].transpose(1, 2, 0, 3)
    np.testing.assert_array_equal(left["pool"], wanted)


@pytest.mark.parametrize("dtype", list(TYPES))
def test_new_tokens_are_quantised_to_the_bits_of_numpy(interpreter, dtype):
    random = np.random.default_rng(0)
    spec = make_spec(kv_heads=3, page_tokens=4, dtype=dtype, kv="int8")
    new = random.normal(size=(2, 2, 9, 3, 32)) * 10.0 ** random.integers(-6, 5, (2, 2, 9, 3, 1))
    new[0, 0, 0] = 0
    new[0, 0, 1, 0, 3], new[1, 0, 1, 1, 4], new[0, 1, 1, 2, 5] = np.nan, np.inf, -np.inf
    new[0, 0, 2, 0] = 1e-39
    with np.errstate(over="ignore"):  # of float16
        k, v = new.astype(TYPES[dtype])
    pool = random.integers(-127, 128, (5, 2, 3, 2, 4, 32)).astype(np.int8)
    scales = random.normal(size=pool.shape[:-1]).astype(np.float32)
    slots = np.array([0, 4, -1, 1, 1, 2, 3, 3], np.int32)
    cells = np.array([0, 3, 1, 1, 2, 0, 0, 3], np.int32)
    arrays = {"k": k, "v": v, "slots": slots, "cells": cells, "pool": pool, "scales": scales}
    left = interpreter.run(
        stand_in(spec, TILES),
        "scatter_tokens",
        arrays,
        {"count": 8, "rows": 9, "layers": 2},
        {"capability": (9, 0), "multiprocessors": 3},
    )
    for side, vectors in enumerate((k, v)):
        numbers, steps = quantised(vectors)
        for token in np.flatnonzero(slots >= 0):
            place = (slots[token], slice(None), slice(None), side, cells[token])
            pool[place], scales[place] = numbers[:, token], steps[:, token]
    np.testing.assert_array_equal(left["pool"], pool)
    np.testing.assert_array_equal(left["scales"].view(np.int32), scales.view(np.int32))


@pytest.mark.parametrize("cells", [4, 8, 16, 32])
def test_places_of_pages_are_set(interpreter, cells):
    where = np.full((6, 1, 1, cells, 3), 7, np.int32)
    slots, places = (
        np.array([4, -1, 0], np.int32),
        np.arange(9 * cells, dtype=np.int32).reshape(3, cells, 3),
    )
    spec = make_spec(page_tokens=cells)
    arrays = {"slots": slots, "places": places, "where": where}
    left = interpreter.run(
        stand_in(spec, TILES),
        "set_places",
        arrays,
        {"count": 3},
        {"capability": (9, 0), "multiprocessors": 3},
    )
    where[4, 0, 0], where[0, 0, 0] = places[0], places[2]
    np.testing.assert_array_equal(left["where"], where)


@pytest.fixture(scope="module", params=["float", "int8"])
def built(request) -> list[Built]:
    """The tiny model's kernels for one architecture."""
    spec = make_spec(dtype="bfloat16", kv=request.param)
    path = once(
        f"kernels-{request.param}.pickle",
        lambda path: path.write_bytes(pickle.dumps(list(build(spec, plan_tasks(spec, 90))))),
    )
    return pickle.loads(path.read_bytes())


def test_compiled_kernels_take_what_the_runtime_passes(built):
    assert {each.index.kernel for each in built} == set(ARGUMENTS)
    for each in built:
        wanted = ARGUMENTS[each.index.kernel]
        assert each.index.arguments[: len(wanted)] == wanted
        assert set(each.index.arguments[len(wanted) :]) <= {"pointer"}
        assert each.index.shared_bytes <= SHARED_KIB[90] * 1024


def test_the_resources_in_the_results_are_those_of_these_kernels():
    written = json.loads(RESULT.read_text())["conditions"]["sources"]
    assert written == source_hash(), (
        f"the kernels or their tiles are other ones than {RESULT.name} was measured of: run "
        "`python -m vicort.benchmarks.gpu.compiled_kernels`, which takes some minutes"
    )


@pytest.mark.parametrize(
    ("text", "is_same"),
    [
        ("x = 1  # as it was\n", False),
        ("# what it is\n\nx = 1\n", True),
        ('"""What the file is."""\nx = 1\n', True),
        ("x = 2\n", False),
    ],
)
def test_the_hash_of_sources_is_of_code_alone(text, is_same, tmp_path):
    file, hashes = tmp_path / "kernel.py", []
    for content in ("x = 1\n", text):
        file.write_text(content)
        hashes.append(source_hash([file]))
    assert (hashes[0] == hashes[1]) == is_same


@pytest.mark.slow
def test_compiled_kernels_do_not_spill(built):
    rows = [measure(each) for each in built]
    assert {row["stack_bytes"] for row in rows} == {0}
    assert not [fault for row in rows for fault in faults(row)]


@pytest.mark.slow
def test_keys_that_are_rotated_before_take_fewer_instructions(built):
    found = {(each.index.kernel, each.index.form): loops(each.cubin) for each in built}
    at_once, rotated = found["bounded_attention", "wide"], found["rotated_attention", ""]
    assert len(at_once) == len(rotated) == 2  # over cached tokens, and over new ones
    assert rotated[0] < at_once[0] / 2
    assert found["rotate_tokens", ""] == []


def test_a_spill_is_a_fault(built):
    assert "spills: a thread has 4 bytes" in faults(measure(built[0]) | {"stack_bytes": 4})[0]


def test_compiled_kernels_name_no_folder(built):
    assert not [
        each.index.file for each in built if str(Path(__file__).parents[2]).encode() in each.cubin
    ]


def test_the_archive_is_what_the_runtime_reads(built):
    spec = make_spec(dtype="bfloat16")
    kernels = Kernels.parse(pack(spec, built))
    assert kernels.spec == spec
    assert [kernels.cubins[each.index.file] for each in built] == [each.cubin for each in built]
    assert all(kernels.cubins[each.file].startswith(b"\x7fELF") for each in kernels.compiled)
    assert pack(spec, built) == pack(spec, built)


@pytest.mark.slow
def test_kernels_of_every_architecture_are_the_same_bytes_again(tmp_path, monkeypatch):
    spec, seen = make_spec(dtype="bfloat16"), []
    archives = []
    for number in range(2):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / str(number)))
        archives.append(compile_kernels(spec, progress=lambda *step: seen.append(step)))
    assert archives[0] == archives[1]
    assert [done for done, *_ in seen[:42]] == list(range(1, 43))
    assert {total for _, total, _ in seen} == {42}
    assert {each.architecture for each in Kernels.parse(archives[0]).compiled} == set(DEFAULT)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_architecture_spills(architecture):
    for each in build(make_spec(dtype="bfloat16"), plan_tasks(make_spec(), architecture)):
        assert not faults(measure(each))


def test_a_kernel_takes_the_first_tile_that_fits_its_shared_memory(cold, monkeypatch):
    (task,) = (
        each
        for each in plan_tasks(make_spec(dtype="bfloat16"), 90)
        if each.kernel == "rotated_attention"
    )
    small, large = Tile(4, 1, (16, 16)), Tile(4, 1, (32, 32))
    (taken,) = build(make_spec(dtype="bfloat16"), [replace(task, tiles=(large, small))])
    assert taken.index.constants["BLOCK_M"] == 32
    monkeypatch.setitem(SHARED_KIB, 90, (taken.index.shared_bytes - 1) / 1024)
    (taken,) = build(make_spec(dtype="bfloat16"), [replace(task, tiles=(large, small))])
    assert taken.index.constants["BLOCK_M"] == 16
    with pytest.raises(EngineError, match="no tile fits its shared memory"):
        list(build(make_spec(dtype="bfloat16"), [replace(task, tiles=(large,))]))


@pytest.mark.parametrize("name", KERNELS)
def test_arguments_have_names_that_cpp_takes(name):
    """AOTInductor's program calls the kernels in C++, and names the arguments so."""
    names = ", ".join(f"int {each}" for each in KERNELS[name].arg_names)
    command = [*compiler(".cpp"), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=f"void f({names});".encode(), check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("name", PARAMETERS)
def test_arguments_are_passed_in_the_order_of_the_kernel(name):
    assert PARAMETERS[name] == tuple(
        each.name for each in KERNELS[name].params if not each.is_constexpr
    )


@given(names=st.lists(st.sampled_from([f"sm_{each}" for each in ARCHITECTURES]), min_size=1))
def test_named_targets_are_compiled_for_and_no_others(names):
    assert of_targets(names) == tuple(int(name[3:]) for name in names)


def test_targets_that_kernels_are_not_compiled_for_are_refused_with_those_that_are():
    assert of_targets(()) == DEFAULT
    with pytest.raises(ConfigError, match=r"--target sm_75: .* sm_80, sm_86, .* sm_121: name one"):
        of_targets(("sm_86", "sm_75"))


def test_head_widths_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="heads of 48 do not fit"):
        compile_kernels(make_spec(head_dim=48, sections=(8, 8, 8)))


def test_the_kept_report_covers_every_model_without_a_spill():
    rows = json.loads(RESULT.read_text())["rows"]
    covered = {(row["model"], row["dtype"], row["architecture"]) for row in rows}
    assert covered == {
        (model, dtype, f"sm_{each}") for model, dtype in COVERED for each in ARCHITECTURES
    }
    assert {row["kernel"] for row in rows} == {
        task.label.partition(" for ")[0] for task in plan_tasks(make_spec(), 90)
    }
    assert not [fault for row in rows for fault in faults(row)]


def small_tasks(spec: KernelSpec, architectures: Sequence[int] = (80, 90, 120)) -> list[Task]:
    """Kernels that compile in less than a second."""
    return [
        task
        for each in architectures
        for task in plan_tasks(spec, each)
        if task.kernel in ("combine", "set_places")
    ]


def cpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(compiling.os, "sched_getaffinity", lambda _: set(range(count)))


@pytest.fixture
def cold(monkeypatch, tmp_path) -> None:
    """Nothing comes from Triton's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_many_kernels_at_once_are_those_of_one_process(monkeypatch, cold, tmp_path):
    spec = make_spec(dtype="bfloat16")
    tasks = small_tasks(spec)
    cpus(monkeypatch, 4)
    at_once = list(build(spec, tasks))
    assert [each.index.architecture for each in at_once] == [task.architecture for task in tasks]
    cpus(monkeypatch, 1)
    monkeypatch.setattr(compiling, "_Worker", None)  # one CPU, or one task: no further process
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "other"))
    assert list(build(spec, tasks[:2])) == at_once[:2]
    cpus(monkeypatch, 4)
    assert list(build(spec, tasks[:1])) == at_once[:1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_kernel_that_does_not_compile_is_one_line(monkeypatch, cold, count):
    spec = make_spec(dtype="bfloat16")
    good, other = small_tasks(spec, (90,))
    bad = replace(good, constants=good.constants | {"BLOCK": 15})  # no power of two
    cpus(monkeypatch, count)
    with pytest.raises(EngineError) as caught:
        list(build(spec, [other, bad, other]))
    assert re.fullmatch(
        r"combine for sm_90 does not compile \(.*power of 2.*\): build without the plugin",
        str(caught.value),
    )


def test_a_compiler_process_that_ends_is_one_line(monkeypatch):
    spec = make_spec(dtype="bfloat16")
    cpus(monkeypatch, 2)
    monkeypatch.setattr(compiling, "WORKER", "vicort.no_worker")
    with pytest.raises(EngineError) as caught:
        list(build(spec, small_tasks(spec, (90,))))
    assert re.fullmatch(
        r"(combine|set_places) for sm_90 does not compile \(its process ended with exit status 1: "
        r".*No module named vicort.no_worker.*\): build without the plugin",
        str(caught.value),
    )


def test_without_a_guard_a_script_compiles_once_and_ctrl_c_ends_all_processes(cold):
    """The script has no `if __name__ == "__main__"`: a process that imports it again would start
    another build."""
    script = Path(__file__).parents[1] / "support" / "unguarded_compilation.py"
    process = processes.python(str(script), text=True)
    first, done = process.stdout.readline(), process.stdout.readline()
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert (first, done) == ("script started\n", "1 of 42\n")
    assert "script started" not in rest
    assert len(workers) == 2
    assert not [each for each in workers if Path(f"/proc/{each}").exists()]
    assert "KeyboardInterrupt" in err
    assert "compile_worker.py" not in err
