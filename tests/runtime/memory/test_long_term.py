"""Cells by layer and head: what is loaded is what was chosen, and the ways to read it."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.fake_engines import toy_model
from support.systems import system

from vicort.runtime.devices.host import HostDevice
from vicort.runtime.devices.pages import EMPTY
from vicort.runtime.errors import ConfigError
from vicort.runtime.memory import long_term
from vicort.runtime.memory.long_term.readers import ChunkBefore, EachStep, TwoPass
from vicort.runtime.memory.long_term.selection import Recall, Selection
from vicort.runtime.memory.page_tables import NONE, concat_tables

MODEL = toy_model()
FAR, NEAR = 7, 5  # slots of the long-term pool, and of a reader
SHAPE = (MODEL.layers, MODEL.kv_heads, NEAR)
MODULES = [module.name for module in pkgutil.iter_modules(long_term.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_right(name):
    module = importlib.import_module(f"{long_term.__name__}.{name}")
    assert doctest.testmod(module).failed == 0


def pool(slots, seed=None):
    made = HostDevice(threads=False).pool(MODEL, slots, np.float32, by_head=True)
    random = np.random.default_rng(0 if seed is None else seed)
    made.data[:] = random.normal(size=made.data.shape)
    made.cell_positions[:] = random.integers(0, 99, made.cell_positions.shape)
    return made


@given(
    cells=arrays.arrays(np.int32, SHAPE, elements=st.integers(NONE, FAR - 1)),
    filled=arrays.arrays(np.int32, SHAPE, elements=st.integers(0, MODEL.page_tokens)),
)
def test_each_layer_and_head_reads_its_own_cells_and_no_token_beyond_what_counts(cells, filled):
    far, near, slots = pool(FAR, 1), pool(20, 2), [11, 3, 8, 19, 0]
    before = near.data.copy()
    recall = Recall(near, slots)
    table = recall.load(far, Selection(cells, filled))
    for layer, head, column in np.ndindex(SHAPE):
        slot, cell, count = (
            table[layer, head, column],
            cells[layer, head, column],
            filled[layer, head, column],
        )
        if cell == NONE:
            unused = slots[column], layer, head
            assert slot == NONE
            assert (near.data[unused] == before[unused]).all()
            continue
        assert slot == slots[column]
        assert (near.data[slot, layer, head] == far.data[cell, layer, head]).all()
        loaded = near.cell_positions[slot, layer, head]
        assert (loaded[:count] == far.cell_positions[cell, layer, head, :count]).all()
        assert (loaded[count:] == EMPTY).all()
    assert recall.bytes_moved == (cells != NONE).sum() * far.data[0, 0, 0].nbytes


def test_a_table_has_what_all_read_and_then_what_each_reads():
    own = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    table = concat_tables([40, 41], own, 9)
    assert (table[:, :, :2] == [40, 41]).all()
    assert (table[:, :, 2:7] == own).all()
    assert (table[:, :, 7:] == NONE).all()


class StubView:
    """Chooses one cell, whose number is the query's value."""

    released = 0

    def choose(self, q):
        return Selection(
            np.full((*SHAPE[:2], 1), int(q.flat[0]), np.int32),
            np.full((*SHAPE[:2], 1), 2, np.int32),
        )

    def pages(self, selection):
        return []

    def release(self):
        self.released += 1


def query(number):
    return np.full((MODEL.layers, MODEL.query_heads, MODEL.head_dim), number, np.float32)


def read(reader):
    return reader.selection.cells[0, 0].tolist()


@pytest.mark.parametrize(("kind", "after_a_token"), [(TwoPass, [3]), (EachStep, [4])])
def test_a_question_is_read_twice_and_its_answer_as_the_system_says(kind, after_a_token):
    reader = kind(MODEL, StubView(), pool(FAR), Recall(pool(NEAR), range(NEAR)))
    assert reader.table.shape == (*SHAPE[:2], 0)
    assert reader.must_rerun(query(3), prefill=True)
    assert read(reader) == [3]
    assert not reader.must_rerun(query(5), prefill=True)
    assert read(reader) == [3]
    assert not reader.must_rerun(query(4), prefill=False)
    assert read(reader) == after_a_token
    assert reader.reruns == 1


def test_a_chunk_reads_what_the_chunk_before_chose():
    reader = ChunkBefore(MODEL, StubView(), pool(FAR), Recall(pool(NEAR), range(NEAR)))
    reader.renew(StubView())
    assert reader.selection.max_cells == 0
    assert not reader.must_rerun(query(6), prefill=True)
    assert reader.selection.max_cells == 0
    reader.renew(StubView())
    assert read(reader) == [6]


def test_long_term_memory_needs_a_window_and_replaces_retrieval():
    with pytest.raises(ConfigError, match="retrieval and long_term"):
        system(memory="{device_mb: 1, when_full: drop-oldest}\nlong_term: {policy: none}")
