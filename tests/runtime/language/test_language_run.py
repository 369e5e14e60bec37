"""Rows of text and of visual tokens, as the language graph gets them, and the logits after
them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import system

from vicort.runtime.core import Sampling
from vicort.runtime.devices.host import HostDevice, InlineStream
from vicort.runtime.engines.embedding import Embedding
from vicort.runtime.language.language_run import FEATURE_ROW, LanguageRun
from vicort.runtime.manifest import EmbeddingSpec
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
        positions = np.repeat(np.arange(count, dtype=np.int32)[:, None], 3, 1)
        ids = None if tokens is None else np.array(tokens, np.int32)
        self.run(ids, features, positions, TABLE, STREAM)
        return self.entered[-1]


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
