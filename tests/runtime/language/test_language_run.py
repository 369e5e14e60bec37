"""Rows of text and of visual tokens, as the language graph gets them, and the logits after
them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.row_trees import path, random_tree
from support.sizes import examples
from support.streams import frames
from support.systems import system

from vicort.runtime.core import Sampling
from vicort.runtime.devices.host import HostDevice, InlineStream
from vicort.runtime.engines.embedding import Embedding
from vicort.runtime.language.language_run import FEATURE_ROW, LanguageRun
from vicort.runtime.manifest import MAX_ENDS, EmbeddingSpec
from vicort.runtime.session import Session

STREAM = InlineStream("test")
TABLE = np.full((1, 1, 1), -1, np.int32)


class Watched:
    """A run of the toy model; `entered` has the rows of each of its runs, `addresses` where they
    were."""

    def __init__(self) -> None:
        self.engines = FakeEngineSet()
        self.device = HostDevice(threads=False)
        pool = self.device.pool(self.engines.model, 2, np.float32)
        self.entered: list[np.ndarray] = []
        self.addresses: set[int] = set()
        read = self.engines.llm.function

        def reading(**bound):
            self.entered.append(bound["features"].copy())
            self.addresses.add(bound["features"].ctypes.data)
            return read(**bound)

        self.engines.llm.function = reading
        self.run = LanguageRun(self.engines, self.device, pool)

    def __call__(self, tokens, features=()):
        count = sum(map(len, features)) if tokens is None else len(tokens)
        ids = None if tokens is None else np.array(tokens, np.int32)
        self.run(ids, features, steps(range(count)), TABLE, STREAM)
        return self.entered[-1]

    def read(self, tokens, positions, **options):
        """The hidden states that leave, and the logits after them."""
        ids = np.array(tokens, np.int32)
        hidden = self.run(ids, (), steps(positions), TABLE, STREAM, **options).hidden.copy()
        return hidden, self.run.logits(STREAM).copy()


def steps(places):
    """[C,3] int32"""
    return np.repeat(np.array(places, np.int32)[:, None], 3, 1)


def visual(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


V = FEATURE_ROW


@pytest.mark.parametrize(
    "tokens",
    [[5], [5, 9, 2], [V, V, 7, 8], [V, 7, V, V, 8, 9], [7, V, 8], [V, V, V], [V, 3]],
)
def test_each_row_is_its_token_or_its_visual_token(tokens):
    watched = Watched()
    width = watched.engines.model.width
    watched([4] * 20)  # what an earlier run left in the buffer
    rows = visual(len(tokens), width)
    found = watched(tokens, [rows[:1], rows[1:]])[: len(tokens)]
    for token, seen, row in zip(tokens, rows, found, strict=True):
        wanted = seen if token == V else watched.engines.embedding[token]
        assert np.array_equal(row, wanted)


def test_all_rows_are_visual_tokens_where_no_tokens_are_given():
    watched = Watched()
    rows = visual(6, watched.engines.model.width)
    assert np.array_equal(watched(None, [rows])[:6], rows)


def test_rows_are_always_at_one_address():
    """CUDA graphs replay addresses."""
    watched = Watched()
    rows = visual(2, watched.engines.model.width)
    for tokens in ([1], [2, 3, 4], [V, V, 5], list(range(20))):
        watched(tokens, [rows])
    assert len(watched.addresses) == 1


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", [np.float32, ml_dtypes.bfloat16])
def test_rows_of_the_embedding_are_converted_once_at_most(stored, asked, tmp_path):
    kind = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    table = visual(7, 4).astype(kind)
    table.tofile(tmp_path / "embedding.bin")
    spec = EmbeddingSpec(file="embedding.bin", offset=0, dtype=stored, rows=7, width=4)
    ids = np.array([6, 0, 6])
    rows = Embedding(tmp_path, spec).rows(ids, asked)
    assert rows.dtype == asked
    assert rows.tobytes() == table[ids].astype(asked).tobytes()


def test_an_embedding_of_the_graphs_type_is_not_converted(tmp_path):
    """Not even to float32 and back, which would not keep what a NaN carries."""
    np.array([[0x7FA5, 0x3F80]], np.uint16).tofile(tmp_path / "embedding.bin")
    spec = EmbeddingSpec(file="embedding.bin", offset=0, dtype="bfloat16", rows=1, width=2)
    rows = Embedding(tmp_path, spec).rows(np.array([0]), ml_dtypes.bfloat16)
    assert rows.view(np.uint16).tolist() == [[0x7FA5, 0x3F80]]


def test_logits_are_those_of_the_newest_run_and_only_made_when_asked_for():
    watched = Watched()
    embedding, head = watched.engines.embedding, watched.engines.head
    watched([1, 2, 3])
    watched([4, 5])
    assert head.runs == []
    out = watched.run.logits(STREAM)
    assert head.runs == [{"hidden": (1, 16), "logits": (1, 101)}]
    hidden = watched.run._hidden
    np.testing.assert_allclose(out, hidden @ embedding.T, rtol=1e-6)


def test_hidden_states_leave_in_the_order_that_is_asked_for():
    watched, places = Watched(), range(5)
    tokens = [4, 8, 15, 16, 23]
    single = [watched.read(tokens, places, ends=[row]) for row in places]
    for ends in ([4], [3, 0], [2, 2, 4], [4, 3, 2, 1, 0]):
        hidden, logits = watched.read(tokens, places, ends=ends)
        for place, row in enumerate(ends):
            np.testing.assert_array_equal(hidden[place], single[row][0][0])
            # a product of several rows adds up in another order
            np.testing.assert_allclose(logits[place], single[row][1][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(watched.read(tokens, places)[0], single[4][0])


def test_sizes_of_ends_are_few_and_those_of_hidden_states_and_logits():
    """CUDA graphs are of one size."""
    watched, sizes = Watched(), set()
    for count in range(1, MAX_ENDS + 1):
        hidden, logits = watched.read([1, 2, 3], range(3), ends=[2] * count)
        assert hidden.shape[0] == logits.shape[0] >= count
        sizes.add(len(hidden))
    assert sizes == {1, 2, 4, 8, 16, 32, 64}
    assert watched.read([1], [0])[1].shape[0] == 1


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 12))
def test_a_node_of_a_tree_among_the_others_is_its_path_alone(seed, rows):
    random = np.random.default_rng(seed)
    watched, until = Watched(), random_tree(random, rows)
    tokens, row = random.integers(0, 101, rows), int(random.integers(rows))
    places = [len(path(until, each)) for each in range(rows)]
    mine = path(until, row)
    together, _ = watched.read(tokens, places, until=until, ends=[row])
    alone, _ = watched.read(tokens[mine], np.array(places)[mine])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_the_output_head_runs_only_where_a_token_is_chosen():
    """Not for chunks and not after an answer's last token."""
    engines = FakeEngineSet()
    with Session(engines, system(), overlap=False, sampling=Sampling(max_tokens=4)) as session:
        for frame in frames(40):
            session.push(frame)
        session.inspect().pipeline.drain()
        assert engines.head.runs == []
        assert session.ask("what color was the circle?").tokens == 4
    assert len(engines.head.runs) == 4  # after the question, and after three of its tokens
