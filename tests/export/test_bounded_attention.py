"""The op against a plain loop over queries, heads and cells, in NumPy and float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.row_trees import attention_in_one_place, path, random_tree, with_any_padding
from support.sizes import examples

from vicort.export.bounded_attention import bounded_attention, rotate

POISON = (np.nan, np.inf, -np.inf)


@dataclass(frozen=True)
class Case:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    pos: np.ndarray
    segment: np.ndarray
    until: np.ndarray
    pool: np.ndarray
    where: np.ndarray
    table: np.ndarray
    layer: int
    scale: float
    sections: tuple[int, int, int]
    theta: float
    interleaved: bool = False
    scales: np.ndarray | None = None  # then the pool is int8

    def arguments(self, dtype: torch.dtype = torch.float32) -> tuple:
        q, k, v, pool = (
            torch.from_numpy(x) if x.dtype == np.int8 else torch.from_numpy(x).to(dtype)
            for x in (self.q, self.k, self.v, self.pool)
        )
        pos, segment, until, where, table = (
            torch.from_numpy(x)
            for x in (self.pos, self.segment, self.until, self.where, self.table)
        )
        scales = None if self.scales is None else torch.from_numpy(self.scales)
        tensors = (q, k, v, pos, segment, until, pool, where, table, scales)
        sections = list(self.sections)
        return (*tensors, self.layer, self.scale, sections, self.theta, self.interleaved)

    def run(self, dtype: torch.dtype = torch.float32) -> np.ndarray:
        out = bounded_attention(*self.arguments(dtype))
        assert out.dtype == dtype
        return out.float().numpy()

    def cached(self, slot: int, head: int, side: int, cell: int) -> np.ndarray:
        """[D] of this layer: the key (side 0) or value (side 1) of a token as numbers."""
        vector = self.pool[slot, self.layer, head, side, cell].astype(np.float64)
        return (
            vector
            if self.scales is None
            else vector * self.scales[slot, self.layer, head, side, cell]
        )


@st.composite
def cases(draw) -> Case:
    size = lambda low, high: draw(st.integers(low, high))
    random = np.random.default_rng(size(0, 2**32))
    rows, heads, group, layers = size(1, 6), size(1, 3), size(1, 3), size(1, 3)
    segments, quantised = size(1, 3), draw(st.booleans())
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
    tables = range(segments * table_dims[0] * table_dims[1])
    table = np.stack([random.permutation(max(slots, read))[:read] for _ in tables])
    table = table.reshape(segments, *table_dims, read).astype(np.int32)
    pool, scales = normal(slots, layers, heads, 2, cells, dim), None
    if quantised:
        pool = random.integers(-127, 128, pool.shape).astype(np.int8)
        scales = random.uniform(0, 0.02, pool.shape[:-1]).astype(np.float32)
    table[(table >= slots) | (random.random(table.shape) < draw(st.sampled_from([0, 0.5, 1])))] = -1
    return poisoned(
        Case(
            q=normal(rows, heads * group, dim),
            k=normal(rows, heads, dim),
            v=normal(rows, heads, dim),
            pos=pos,
            segment=random.integers(0, segments, rows).astype(np.int32),
            until=with_any_padding(random, random_tree(random, rows), pos),
            pool=pool,
            where=where,
            table=table,
            layer=size(0, layers - 1),
            scale=draw(st.sampled_from([0.1, 1.0])),
            sections=sections,
            theta=draw(st.sampled_from([1e4, 1e6])),
            interleaved=draw(st.booleans()),
            scales=scales,
        ),
        draw(st.sampled_from(POISON)),
    )


def poisoned(case: Case, value: float) -> Case:
    """Whatever this layer may not attend to holds `value`: empty cells, slots that no table names,
    other layers, padding rows."""
    for array in (case.q, case.k, case.v):
        array[case.pos[:, 0] < 0] = value
    numbers = case.pool if case.scales is None else case.scales
    for slot, layer, head in np.ndindex(case.pool.shape[:3]):
        slots, places = this_heads(case, head)
        unused = (places[slot, :, 0] < 0) | (slot not in slots) | (layer != case.layer)
        numbers[slot, layer, head][:, unused] = value
    return case


def this_heads(case: Case, head: int) -> tuple[np.ndarray, np.ndarray]:
    """The tables [S,N] and the places [P,T,3] of the case's layer and one of its heads, where `1`
    stands for all layers or heads."""
    pick = lambda count, index: 0 if count == 1 else index
    tables = case.table[:, pick(case.table.shape[1], case.layer)]
    return tables[:, pick(tables.shape[1], head)], case.where[
        :, pick(case.where.shape[1], case.layer), pick(case.where.shape[2], head)
    ]


def rotated(case: Case, x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """One vector [D] at one place [3], as D/2 complex numbers that are turned."""
    half = len(x) // 2
    t, h, w = case.sections
    axis = [0] * t + [1] * h + [2] * w
    if case.interleaved:
        axis = [0] * half
        axis[1 : 3 * h : 3] = [1] * len(axis[1 : 3 * h : 3])
        axis[2 : 3 * w : 3] = [2] * len(axis[2 : 3 * w : 3])
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
        tables, places = this_heads(case, head)
        seen = [
            (
                rotated(case, case.cached(slot, head, 0, cell), places[slot, cell]),
                case.cached(slot, head, 1, cell),
            )
            for slot in tables[case.segment[row]]
            if slot >= 0
            for cell in range(places.shape[1])
            if places[slot, cell, 0] >= 0
        ]
        seen += [
            (rotated(case, case.k[other, head], case.pos[other]), case.v[other, head])
            for other in range(row + 1)
            if case.pos[other, 0] >= 0 and row < case.until[other]
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
    columns = list(range(case.table.shape[-1]))
    order.shuffle(columns)
    mixed = Case(**(vars(case) | {"table": np.ascontiguousarray(case.table[..., columns])}))
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
        "segment": np.zeros(rows, np.int32),
        "until": np.full(rows, rows, np.int32),
        "pool": normal(2, 1, 2, 2, 4, 8),
        "where": where,
        "table": np.array([[[[1, 0]]]], dtype=np.int32),
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
            for name in ("q", "k", "v", "pos", "segment", "until")
        }
        step = filled_case(
            6, **new, pool=pool, where=where, table=np.array([[[table]]], dtype=np.int32)
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


def alone(case: Case, rows: list[int], table: np.ndarray) -> np.ndarray:
    """Some rows of a case in a run of their own, one after another, over one table."""
    mine = {name: getattr(case, name)[rows] for name in ("q", "k", "v", "pos")}
    mine |= {"segment": np.zeros(len(rows), np.int32), "table": table}
    mine["until"] = np.full(len(rows), len(rows), np.int32)
    return Case(**(vars(case) | mine)).run()


def test_blocks_together_are_blocks_apart():
    """Two questions in one run, each with a table of its own, read nothing of each other."""
    case = filled_case(
        6,
        table=np.array([[[[1, 0]]], [[[0, -1]]]], dtype=np.int32),
        segment=np.array([0, 0, 1, 1, 1, 1], np.int32),
        until=np.array([2, 2, 6, 6, 6, 6], np.int32),
    )
    together = case.run()
    for number, rows in enumerate(([0, 1], [2, 3, 4, 5])):
        table = np.ascontiguousarray(case.table[number : number + 1])
        np.testing.assert_allclose(together[rows], alone(case, rows, table), atol=1e-6)


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 12))
def test_a_node_of_a_tree_among_the_others_is_its_path_alone(seed, rows):
    until = random_tree(np.random.default_rng(seed), rows)
    case = filled_case(rows, until=until)
    together = case.run()
    for row in range(rows):
        mine = path(until, row)
        np.testing.assert_allclose(together[mine], alone(case, mine, case.table), atol=1e-5)


def test_a_row_of_a_tree_sees_what_the_rule_in_numpy_says():
    until = np.array([9, 3, 3, 5, 5, 9, 7, 8, 9], np.int32)
    same = {"pos": np.full((9, 3), 7, np.int32), "where": np.full((2, 1, 1, 4, 3), 7, np.int32)}
    same["pos"][4], same["where"][1, 0, 0, 2] = -1, -1
    case = filled_case(9, until=until, **same)
    np.testing.assert_allclose(case.run(), attention_in_one_place(vars(case), 0, 0.3), atol=1e-6)


@pytest.mark.parametrize("sections", [(24, 20, 20), (16, 24, 24), (11, 11, 10), (30, 1, 1)])
def test_interleaved_axes_are_those_of_transformers(sections):
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    half, theta = sum(sections), 5e6
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}
    config = Qwen3VLTextConfig(
        hidden_size=4 * half,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=2 * half,
        rope_parameters=rope,
    )
    embedding = Qwen3VLTextRotaryEmbedding(config)
    place = torch.tensor([[3, 700, 40], [1000, 1, 2], [0, 9, 100_000]])
    cos, sin = embedding(torch.zeros(1), place.T[:, None])
    x = torch.randn(3, 2 * half, generator=torch.Generator().manual_seed(0))
    first, second = x.chunk(2, dim=-1)
    wanted = x * cos[0] + torch.cat([-second, first], dim=-1) * sin[0]
    torch.testing.assert_close(rotate(x, place, sections, theta, True), wanted)
    assert (rotate(x, place, sections, theta) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantised", [False, True])
def test_registered_as_pytorch_wants_it(dtype, quantised):
    case = filled_case(3)
    if quantised:
        pool = np.ones(case.pool.shape, np.int8)
        case = filled_case(3, pool=pool, scales=np.ones(pool.shape[:-1], np.float32))
    args = case.arguments(dtype)
    torch.library.opcheck(bounded_attention, args, test_utils=["test_schema", "test_faketensor"])
