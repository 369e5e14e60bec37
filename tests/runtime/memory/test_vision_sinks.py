"""Vision Sink Bucketing against the paper's two phases, and the rules that hold for every
stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import rotate as rotate_one
from support.fake_engines import toy_model
from support.sink_buckets import attention_shares, two_phases
from support.sizes import examples

from vicort.runtime.memory.host_rotary import rotate
from vicort.runtime.memory.long_term.vision_sinks import Buckets, keep_best, sink_scores

MODEL = toy_model()


def chunk(
    random: np.random.Generator, count: int, rows: int = MODEL.observed_rows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys [L, n, Hkv, D], positions [n, 3], and queries [L, R, Hq, D] of the last rows, after
    zeros."""
    m = MODEL
    k = random.normal(size=(m.layers, count, m.kv_heads, m.head_dim)).astype(np.float32)
    queries = random.normal(size=(m.layers, rows, m.query_heads, m.head_dim)).astype(np.float32)
    queries[:, : max(rows - count, 0)] = 0
    return k, random.integers(0, 500, (count, 3)), queries


def test_rotation_is_that_of_the_op():
    random = np.random.default_rng(0)
    x, places = random.normal(size=(5, 7, MODEL.head_dim)), random.integers(0, 2000, (7, 3))
    expected = [[rotate_one(x[i, j], places[j]) for j in range(7)] for i in range(5)]
    np.testing.assert_allclose(rotate(x, places, MODEL), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, MODEL.observed_rows, 40])
def test_scores_are_the_attention_of_the_last_tokens(count):
    k, positions, queries = chunk(np.random.default_rng(count), count)
    scores = sink_scores(k, positions, queries, MODEL)
    np.testing.assert_allclose(scores, attention_shares(k, positions, queries), rtol=2e-4)
    np.testing.assert_allclose(scores.mean(axis=1), 1, rtol=1e-5)


@settings(max_examples=examples(200))
@given(st.data())
def test_buckets_keep_what_the_two_phases_place(data):
    """Whatever the number R of the first phase, and with scores that tie."""
    count = data.draw(st.integers(1, 40))
    capacity = data.draw(st.integers(1, 4))
    buckets = data.draw(st.integers(1, count))
    scores = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 9), min_size=count, max_size=count), min_size=2, max_size=2
            )
        ),
        np.float32,
    )
    bucket = np.arange(count) * buckets // count
    kept = keep_best(scores, bucket, capacity)
    for layer in range(2):
        first = data.draw(st.integers(0, count))
        assert kept[layer].tolist() == two_phases(scores[layer], bucket, capacity, first)
    assert (np.diff(kept, axis=1) > 0).all()
    held = np.stack([np.bincount(bucket[row], minlength=buckets) for row in kept])
    # every bucket covered, none over its capacity
    assert (held == np.minimum(np.bincount(bucket), capacity)).all()


@settings(max_examples=examples(200))
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=25),
    st.integers(1, 3),
    st.randoms(),
)
def test_merging_covers_the_stream_evenly(steps, capacity, random):
    """Chunks of random sizes come and random numbers of tokens go: buckets stay neighbours without
    gaps, and merge as in a binary tree."""
    buckets, came = Buckets.none(), 0
    for count, excess in steps:
        buckets = buckets.grown(np.array([random.randint(1, capacity) for _ in range(count)]))
        came += count
        before = buckets
        buckets, group = buckets.merged(capacity, excess)
        assert buckets.starts.tolist() == [0, *(buckets.starts + 2**buckets.levels).tolist()[:-1]]
        assert buckets.starts[-1] + 2 ** buckets.levels[-1] == came
        assert (buckets.starts % 2**buckets.levels == 0).all()
        assert (buckets.sizes <= capacity).all()
        assert (buckets.sizes >= 1).all()
        assert (np.diff(group) >= 0).all()
        held = np.bincount(group)
        assert held.tolist() == [
            sum(before.sizes[(before.starts >= s) & (before.starts < e)]) for s, e in spans(buckets)
        ]
        assert (buckets.sizes <= held).all()
        pairs_left = (
            (buckets.levels[:-1] == buckets.levels[1:])
            & (buckets.starts[:-1] % (2 << buckets.levels[:-1]) == 0)
        ).any()
        assert before.tokens - buckets.tokens >= excess or not pairs_left


def spans(buckets: Buckets) -> list[tuple[int, int]]:
    return list(zip(buckets.starts, buckets.starts + 2**buckets.levels, strict=True))


def test_the_lowest_level_merges_first_and_of_it_the_oldest():
    buckets, group = Buckets.none().grown(np.ones(8, int)).merged(1, 2)
    assert (buckets.levels.tolist(), group.tolist()) == (
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 2, 3, 4, 5],
    )
    buckets, group = buckets.grown(np.ones(2, int)).merged(1, 4)
    assert (buckets.levels.tolist(), group.tolist()) == ([2, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])


def test_a_long_stream_is_covered_to_a_factor_of_two():
    """Memory of 64 buckets, always full: all but the latest chunks have bucket widths next to each
    other."""
    buckets = Buckets.none()
    for _ in range(5000):
        buckets = buckets.grown(np.ones(4, int))
        buckets, _ = buckets.merged(1, buckets.tokens - 64)
        assert buckets.tokens <= 64
    widths = 2**buckets.levels
    assert widths.max() <= 2 * 20_000 / 64 * 2
    assert (widths[:32] >= 256).all()
