"""The op against a plain loop over queries, heads and cells, in NumPy and float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.export.bounded_attention import bounded_attention

POISON = (np.nan, np.inf, -np.inf)


@dataclass(frozen=True)
class Case:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    pos: np.ndarray
    pool: np.ndarray
    where: np.ndarray
    table: np.ndarray
    layer: int
    scale: float
    sections: tuple[int, int, int]
    theta: float

    def run(self, dtype: torch.dtype = torch.float32) -> np.ndarray:
        floats = [torch.from_numpy(x).to(dtype) for x in (self.q, self.k, self.v, self.pool)]
        ints = [torch.from_numpy(x) for x in (self.pos, self.where, self.table)]
        out = bounded_attention(
            *floats[:3],
            ints[0],
            floats[3],
            *ints[1:],
            self.layer,
            self.scale,
            list(self.sections),
            self.theta,
        )
        assert out.dtype == dtype
        return out.float().numpy()


@st.composite
def cases(draw) -> Case:
    size = lambda low, high: draw(st.integers(low, high))
    random = np.random.default_rng(size(0, 2**32))
    rows, heads, group, layers = size(1, 6), size(1, 3), size(1, 3), size(1, 3)
    slots, cells, read = size(1, 6), size(1, 4), size(0, 5)
    sections = (size(0, 3), size(0, 3), size(1, 3))
    dim = 2 * sum(sections)
    where_dims = (draw(st.sampled_from([1, layers])), draw(st.sampled_from([1, heads])))
    table_dims = (draw(st.sampled_from([1, layers])), draw(st.sampled_from([1, heads])))

    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    places = lambda *shape: random.integers(0, 50, size=(*shape, 3)).astype(np.int32)
    pos, where = places(rows), places(slots, *where_dims, cells)
    pos[random.random(rows) < draw(st.sampled_from([0, 0.4, 1]))] = -1
    where[random.random(where.shape[:-1]) < draw(st.sampled_from([0, 0.5, 1]))] = -1
    table = np.stack(
        [random.permutation(max(slots, read))[:read] for _ in range(table_dims[0] * table_dims[1])]
    )
    table = table.reshape(*table_dims, read).astype(np.int32)
    table[(table >= slots) | (random.random(table.shape) < draw(st.sampled_from([0, 0.5, 1])))] = -1
    return poisoned(
        Case(
            q=normal(rows, heads * group, dim),
            k=normal(rows, heads, dim),
            v=normal(rows, heads, dim),
            pos=pos,
            pool=normal(slots, layers, heads, 2, cells, dim),
            where=where,
            table=table,
            layer=size(0, layers - 1),
            scale=draw(st.sampled_from([0.1, 1.0])),
            sections=sections,
            theta=draw(st.sampled_from([1e4, 1e6])),
        ),
        draw(st.sampled_from(POISON)),
    )


def poisoned(case: Case, value: float) -> Case:
    """Whatever this layer may not attend to holds `value`: empty cells, slots that no table names,
    other layers, padding rows."""
    for array in (case.q, case.k, case.v):
        array[case.pos[:, 0] < 0] = value
    for slot, layer, head in np.ndindex(case.pool.shape[:3]):
        slots, places = this_heads(case, head)
        unused = (places[slot, :, 0] < 0) | (slot not in slots) | (layer != case.layer)
        case.pool[slot, layer, head][:, unused] = value
    return case


def this_heads(case: Case, head: int) -> tuple[np.ndarray, np.ndarray]:
    """The table [N] and the places [P,T,3] of the case's layer and one of its heads, where `1`
    stands for all layers or heads."""
    pick = lambda count, index: 0 if count == 1 else index
    table = case.table[pick(case.table.shape[0], case.layer), pick(case.table.shape[1], head)]
    return table, case.where[
        :, pick(case.where.shape[1], case.layer), pick(case.where.shape[2], head)
    ]


def rotated(case: Case, x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """One vector [D] at one place [3], as D/2 complex numbers that are turned."""
    half = len(x) // 2
    axis = [0] * case.sections[0] + [1] * case.sections[1] + [2] * case.sections[2]
    angle = [float(place[axis[i]]) * case.theta ** (-2 * i / len(x)) for i in range(half)]
    turned = (x[:half].astype(np.float64) + 1j * x[half:]) * np.exp(1j * np.array(angle))
    return np.concatenate([turned.real, turned.imag])


def plain(case: Case) -> np.ndarray:
    out = np.zeros(case.q.shape)
    group = case.q.shape[1] // case.k.shape[1]
    for row, query_head in np.ndindex(out.shape[:2]):
        if case.pos[row, 0] < 0:
            continue
        head = query_head // group
        slots, places = this_heads(case, head)
        seen = [
            (
                rotated(case, case.pool[slot, case.layer, head, 0, cell], places[slot, cell]),
                case.pool[slot, case.layer, head, 1, cell],
            )
            for slot in slots
            if slot >= 0
            for cell in range(places.shape[1])
            if places[slot, cell, 0] >= 0
        ]
        seen += [
            (rotated(case, case.k[other, head], case.pos[other]), case.v[other, head])
            for other in range(row + 1)
            if case.pos[other, 0] >= 0
        ]
        query = rotated(case, case.q[row, query_head], case.pos[row])
        scores = np.array([query @ key for key, _ in seen]) * case.scale
        weights = np.exp(scores - scores.max())
        out[row, query_head] = (weights / weights.sum()) @ np.array([value for _, value in seen])
    return out


@settings(max_examples=examples(150))
@given(case=cases())
def test_equals_a_loop_over_cells(case):
    np.testing.assert_allclose(case.run(), plain(case), atol=2e-4, rtol=0)


@settings(max_examples=examples(40))
@given(case=cases(), order=st.randoms(use_true_random=False))
def test_order_of_the_table_does_not_matter(case, order):
    columns = list(range(case.table.shape[2]))
    order.shuffle(columns)
    mixed = Case(**(vars(case) | {"table": np.ascontiguousarray(case.table[:, :, columns])}))
    np.testing.assert_allclose(mixed.run(), case.run(), atol=1e-4, rtol=0)


def filled_case(rows: int, **changes) -> Case:
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    place = np.arange(rows, dtype=np.int32)[:, None].repeat(3, 1)
    where = random.integers(0, 9, size=(2, 1, 1, 4, 3)).astype(np.int32)
    parts = {
        "q": normal(rows, 4, 8),
        "k": normal(rows, 2, 8),
        "v": normal(rows, 2, 8),
        "pos": place,
        "pool": normal(2, 1, 2, 2, 4, 8),
        "where": where,
        "table": np.array([[[1, 0]]], dtype=np.int32),
        "layer": 0,
        "scale": 0.3,
        "sections": (1, 1, 2),
        "theta": 1e4,
    }
    return Case(**(parts | changes))


def test_a_run_may_be_cut_anywhere():
    """Rows run one by one, each placed in the pool before the next, give what they give together:
    the three uses of the op are one."""
    case = filled_case(6)
    together = case.run()
    pool = np.concatenate([case.pool, np.zeros((6, *case.pool.shape[1:]), np.float32)])
    where = np.concatenate([case.where, np.full((6, *case.where.shape[1:]), -1, np.int32)])
    table = [1, 0]
    for row in range(6):
        new = {
            name: np.ascontiguousarray(getattr(case, name)[row : row + 1])
            for name in ("q", "k", "v", "pos")
        }
        step = filled_case(
            6, **new, pool=pool, where=where, table=np.array([[table]], dtype=np.int32)
        )
        np.testing.assert_allclose(step.run()[0], together[row], atol=1e-5)
        slot = 2 + row
        pool[slot, 0, :, 0, 3], pool[slot, 0, :, 1, 3], where[slot, 0, 0, 3] = (
            case.k[row],
            case.v[row],
            case.pos[row],
        )
        table.append(slot)


def test_moving_all_positions_alike_changes_nothing():
    """Rotary positions are relative, and keys are kept un-rotated: to re-base a stream is an
    addition."""
    case = filled_case(5)
    moved = filled_case(5, pos=case.pos + 70, where=case.where + 70)
    np.testing.assert_allclose(moved.run(), case.run(), atol=1e-4)
    assert np.abs(filled_case(5, pos=case.pos + 70).run() - case.run()).max() > 1e-2


def test_bfloat16_keeps_scores_in_float32():
    case = filled_case(5)
    np.testing.assert_allclose(case.run(torch.bfloat16), case.run(), atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_as_pytorch_wants_it(dtype):
    case = filled_case(3)
    floats = [torch.from_numpy(x).to(dtype) for x in (case.q, case.k, case.v, case.pool)]
    ints = [torch.from_numpy(x) for x in (case.pos, case.where, case.table)]
    args = (*floats[:3], ints[0], floats[3], *ints[1:], 0, 0.3, [1, 1, 2], 1e4)
    torch.library.opcheck(bounded_attention, args, test_utils=["test_schema", "test_faketensor"])
