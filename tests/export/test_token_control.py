"""Token control against plain statements of ViCoStream's rule within a chunk, and of
TimeChat-Online's rule from unit to unit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.export.token_control import TokenControlGraph
from vicort.runtime.core import TokenMode


def plain_kept(features: np.ndarray, threshold: float, positions: int) -> list[int]:
    """Unit 0 whole; of the others, positions that fall below the threshold at least once, or are
    among the `positions` least alike."""
    units, places, _ = features.shape
    unit_vectors = features / np.linalg.norm(features, axis=-1, keepdims=True)
    score = [
        min(
            (float(unit_vectors[j, p] @ unit_vectors[j + 1, p]) for j in range(units - 1)),
            default=2.0,
        )
        for p in range(places)
    ]
    lowest = sorted(range(places), key=lambda p: (score[p], p))[:positions]
    hot = {p for p in range(places) if score[p] < threshold or p in lowest}
    return [u * places + p for u in range(units) for p in range(places) if u == 0 or p in hot]


def differential_kept(features: np.ndarray, threshold: float, before: np.ndarray | None):
    """A token is dropped if its cosine to the token before it at the same position is above the
    threshold."""
    units, places, _ = features.shape
    kept = []
    for u in range(units):
        for p in range(places):
            previous = features[u - 1, p] if u else None if before is None else before[p]
            if previous is None:
                kept.append(u * places + p)
                continue
            lengths = np.linalg.norm(previous) * np.linalg.norm(features[u, p])
            if float(previous @ features[u, p]) / lengths <= threshold:
                kept.append(u * places + p)
    return kept


def control(
    features: np.ndarray,
    threshold: float,
    positions: int,
    before: np.ndarray | None = None,
    mode: TokenMode = TokenMode.WITHIN_CHUNK,
) -> list[np.ndarray]:
    """before: None = some that must not matter."""
    arguments = (
        torch.from_numpy(features),
        torch.tensor([threshold]),
        torch.tensor([positions], dtype=torch.int32),
        torch.full(features.shape[1:], torch.nan) if before is None else torch.from_numpy(before),
        torch.tensor([mode], dtype=torch.int32),
    )
    return [out.numpy() for out in TokenControlGraph()(*arguments)]


@settings(max_examples=examples(100))
@given(
    seed=st.integers(0, 2**32 - 1),
    units=st.integers(1, 6),
    places=st.integers(1, 9),
    threshold=st.sampled_from([-2.0, 0.0, 0.25, 0.9, 3.0]),
    positions=st.integers(0, 10),
)
def test_equals_the_plain_rule(seed, units, places, threshold, positions):
    random = np.random.default_rng(seed)
    drift = random.random((1, places, 1)) * 2  # some positions hardly change, others do
    features = (
        random.normal(size=(1, places, 5)) + drift * random.normal(size=(units, places, 5))
    ).astype(np.float32)
    kept, count, compact, mean = control(features, threshold, positions)
    expected = plain_kept(features.astype(np.float64), threshold, positions)
    assert count.tolist() == [len(expected)]
    assert kept.tolist() == expected + [-1] * (units * places - len(expected))
    rows = features.reshape(units * places, 5)[expected]
    assert np.array_equal(compact[: len(expected)], rows)
    assert not compact[len(expected) :].any()
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-5)
    assert (kept.dtype, count.dtype, mean.dtype) == (np.int32, np.int32, np.float32)


@settings(max_examples=examples(100))
@given(
    seed=st.integers(0, 2**32 - 1),
    units=st.integers(1, 6),
    places=st.integers(1, 9),
    threshold=st.sampled_from([-1.0, 0.0, 0.25, 0.9, 1.0]),
    is_first=st.booleans(),
)
def test_tokens_that_equal_those_of_the_unit_before_are_dropped(
    seed, units, places, threshold, is_first
):
    random = np.random.default_rng(seed)
    drift = random.random((1, places, 1)) * 2
    whole = random.normal(size=(1, places, 5)) + drift * random.normal(size=(units + 1, places, 5))
    whole = whole.astype(np.float32)
    before, features = (None, whole[1:]) if is_first else (whole[0], whole[1:])
    mode = TokenMode.FROM_FIRST if is_first else TokenMode.FROM_BEFORE
    kept, count, compact, mean = control(features, threshold, 3, before, mode)
    exact = None if before is None else before.astype(np.float64)
    expected = differential_kept(features.astype(np.float64), threshold, exact)
    assert count.tolist() == [len(expected)]
    assert kept.tolist() == expected + [-1] * (units * places - len(expected))
    rows = features.reshape(units * places, 5)[expected]
    assert np.array_equal(compact[: len(expected)], rows)
    assert not compact[len(expected) :].any()
    np.testing.assert_allclose(mean, rows.sum(0) / max(len(expected), 1), atol=1e-5)


def test_a_chunk_that_equals_what_came_before_keeps_nothing():
    features = np.ones((3, 4, 2), np.float32)
    kept, count, _, mean = control(features, 0.9, 0, features[0], TokenMode.FROM_BEFORE)
    assert (kept.tolist(), count.tolist(), mean.tolist()) == ([-1] * 12, [0], [0, 0])


def test_equal_scores_keep_the_earlier_positions():
    kept, count, _, _ = control(np.ones((3, 5, 4), np.float32), threshold=-2.0, positions=2)
    assert kept[: count[0]].tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 11]


def test_a_change_once_keeps_the_position_in_all_units():
    features = np.ones((4, 3, 2), np.float32)
    features[3, 1] = (1, -1)
    kept, count, _, _ = control(features, threshold=0.25, positions=0)
    assert kept[: count[0]].tolist() == [0, 1, 2, 4, 7, 10]


def test_features_of_bfloat16():
    features = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    kept, count, compact, mean = TokenControlGraph()(
        features,
        torch.tensor([0.1]),
        torch.tensor([1], dtype=torch.int32),
        features[0],
        torch.tensor([TokenMode.WITHIN_CHUNK], dtype=torch.int32),
    )
    assert compact.dtype == torch.bfloat16
    assert mean.dtype == torch.float32
    assert torch.equal(compact[: int(count)], features.flatten(0, 1)[kept[: int(count)].long()])
