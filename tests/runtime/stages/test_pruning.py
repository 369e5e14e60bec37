"""CodecFlow's pruning: the masks against its rule said plainly, and the stages that encode only
what a mask leaves."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet, toy_model
from support.sizes import examples
from support.streams import frames as random_frames
from support.systems import system

from vicort.runtime.core import ChunkEvent, Frame, Motion
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.drop import MotionPruning
from vicort.runtime.session import Session
from vicort.runtime.stages.chunker import Chunker
from vicort.runtime.stages.pruned_stages import bucket, merge_buckets
from vicort.runtime.stages.pruning import Pruner, Side, tokens_of

GRID = (3, 4)  # tokens
MODEL = toy_model(patch=14, grid=GRID, chunk_frames=8)
POLICY = MotionPruning(tau=0.5, alpha=0, difference=4, refresh=10)
MOTION = "{policy: motion, tau: 0.5, difference: 4, refresh: 10}"


def masks_said_plainly(longest: list[np.ndarray | None], tau: float) -> list[np.ndarray]:
    """SEEDS 5: V = |mv| of each patch, None for an I picture; dynamic if V >= tau; sticky until the
    next I picture; all four patches of a 2x2 group if one is; a unit of two frames is dynamic where
    either is. -> tokens of each unit."""
    sticky, of_frame = None, []
    for length in longest:
        if length is None:
            sticky = np.zeros((2 * GRID[0], 2 * GRID[1]), bool)
            of_frame.append(np.ones_like(sticky))
            continue
        for y in range(2 * GRID[0]):
            for x in range(2 * GRID[1]):
                if length[y, x] >= tau:
                    sticky[y, x] = True
        of_frame.append(sticky.copy())
    kept = []
    for first, second in zip(of_frame[::2], of_frame[1::2], strict=True):
        either = first | second
        groups = [
            (y, x)
            for y in range(GRID[0])
            for x in range(GRID[1])
            if either[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].any()
        ]
        kept.append(np.array([y * GRID[1] + x for y, x in groups], int))
    return kept


def frame_of(longest: np.ndarray | None, index: int) -> Frame:
    """A frame of the engine's size; None: an I picture."""
    image = np.zeros((84, 112, 3), np.uint8)
    if longest is None:
        return Frame(image, Fraction(index, 2), index, Motion(True, np.zeros((6, 7), np.float32)))
    return Frame(image, Fraction(index, 2), index, Motion(False, longest))


def chunks_of(frames: list[Frame], chunk_frames: int = 8, model=MODEL):
    chunker = Chunker(chunk_frames, model.grid)
    chunks = [chunker.add(frame) for frame in frames]
    return [chunk for chunk in [*chunks, chunker.flush()] if chunk]


def run_pruner(pruner: Pruner, chunks) -> list[list[int]]:
    return [
        kept.tokens.tolist()
        for chunk in chunks
        for kept in pruner(chunk, np.stack([frame.image for frame in chunk.frames]))
    ]


@settings(max_examples=examples(60))
@given(
    st.lists(st.none() | st.integers(0, 2**31), min_size=2, max_size=20).filter(
        lambda seeds: len(seeds) % 2 == 0
    )
)
def test_masks_follow_the_rule(seeds):
    """Cells of 16 pixels under patches of 14: a patch's length is that of the longest cell it lies
    over."""
    lengths = [None if seed is None or i == 0 else sparse(seed) for i, seed in enumerate(seeds)]
    of_patches = [None if cells is None else longest_by_pixel(cells) for cells in lengths]
    kept = run_pruner(
        Pruner(POLICY, MODEL), chunks_of([frame_of(cells, i) for i, cells in enumerate(lengths)])
    )
    assert kept == [tokens.tolist() for tokens in masks_said_plainly(of_patches, POLICY.tau)]


def sparse(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(
        random.random((6, 7)) < 0.08, random.choice([0.25, 0.5, 2, np.inf], (6, 7)), 0
    ).astype(np.float32)


def longest_by_pixel(cells: np.ndarray) -> np.ndarray:
    pixels = cells.repeat(16, 0).repeat(16, 1)[:84, :112]
    return pixels.reshape(6, 14, 8, 14).max(axis=(1, 3))


@given(st.data())
def test_cells_under_patches_on_a_letterboxed_frame(data):
    """A frame of `source` pixels drawn into `length` of the engine's, every pixel looked up by
    itself."""
    patches, patch = data.draw(st.integers(1, 6)), 4
    length = data.draw(st.integers(1, patches * patch))
    start = data.draw(st.integers(0, patches * patch - length))
    source = length * data.draw(st.integers(1, 9))  # whole source pixels under each of the engine's
    origin = -data.draw(st.integers(0, 15))
    count = -(-(source - origin) // 16)
    cells = np.array(
        data.draw(st.lists(st.floats(0, 9, width=32), min_size=count, max_size=count)), np.float32
    )
    expected = np.zeros(patches)
    for pixel in range(source):
        at = start + pixel * length // source
        expected[at // patch] = max(expected[at // patch], cells[(pixel - origin) // 16])
    longest = Side(patches, patches * patch, start, length, source, origin).longest(cells[:, None])
    np.testing.assert_array_equal(longest[:, 0], expected)


def test_lengths_count_in_pixels_of_the_engines_frame():
    """A source of twice the engine's size: vectors of 0.9 pixels are 0.45 of the engine's."""
    image = np.zeros((168, 224, 3), np.uint8)
    whole = Frame(image, Fraction(0), 0, Motion(True, None))
    for length, kept in ((0.9, 0), (1.1, 12)):
        moved = Frame(
            image, Fraction(1, 2), 1, Motion(False, np.full((11, 14), length, np.float32))
        )
        pruner = Pruner(POLICY, MODEL)
        small = np.zeros((2, 84, 112, 3), np.uint8)
        chunks = chunks_of([whole, whole, moved, moved], 2)
        assert [len(unit.tokens) for chunk in chunks for unit in pruner(chunk, small)] == [12, kept]


@pytest.mark.parametrize("turned", [False, True], ids=["high", "wide"])
def test_in_a_strip_a_length_counts_along_the_side_that_shrinks_less(turned):
    """400x30 pixels become 168x28, so that 0.6 pixels may be 0.56 of the engine's, or 0.252."""
    model = toy_model(patch=14, grid=None, chunk_frames=8, max_pixels=6 * 28**2)
    source, engine, cells = (400, 30), (168, 28), (25, 2)
    if turned:
        source, engine, cells = source[::-1], engine[::-1], cells[::-1]
    assert model.grid(*source).pixels(28) == engine
    image = np.zeros((*source, 3), np.uint8)
    whole = Frame(image, Fraction(0), 0, Motion(True, None))
    for length, kept in ((0.53, 0), (0.6, 6)):
        moved = Frame(image, Fraction(1, 2), 1, Motion(False, np.full(cells, length, np.float32)))
        pruner, shown = Pruner(POLICY, model), np.zeros((2, *engine, 3), np.uint8)
        chunks = chunks_of([whole, whole, moved, moved], 2, model)
        assert [len(unit.tokens) for chunk in chunks for unit in pruner(chunk, shown)] == [6, kept]


def test_a_dropped_chunk_and_another_size_make_a_frame_whole():
    still = [frame_of(None if i == 0 else np.zeros((6, 7), np.float32), i) for i in range(16)]
    first, second, third, fourth = chunks_of(still, 4)
    pruner = Pruner(POLICY, MODEL)
    assert [len(tokens) for tokens in run_pruner(pruner, [first])] == [12, 0]
    assert [len(tokens) for tokens in run_pruner(pruner, [third])] == [12, 0]  # the second was lost
    larger, none = np.zeros((168, 224, 3), np.uint8), Motion(False, np.zeros((11, 14), np.float32))
    other = replace(
        fourth, frames=tuple(replace(frame, image=larger, motion=none) for frame in fourth.frames)
    )
    assert [len(unit.tokens) for unit in pruner(other, np.zeros((4, 84, 112, 3), np.uint8))] == [
        12,
        0,
    ]
    assert second.units == 2


def test_without_vectors_frames_are_compared_and_whole_every_few_seconds():
    """Each frame is 2 grey levels brighter than the one before, and one patch is 40 brighter in
    frames 5 and 6; 10 s are 20 frames."""
    images = [np.full((84, 112, 3), 50, np.uint8) for _ in range(24)]
    for i in (5, 6):
        images[i][28:42, 56:70] = 90
    kept = run_pruner(
        Pruner(POLICY, MODEL),
        chunks_of([Frame(image, Fraction(i, 2), i) for i, image in enumerate(images)]),
    )
    everything, changed = list(range(12)), [6]
    assert kept == [everything, [], *[changed] * 8, everything, []]


def test_noise_of_single_pixels_is_no_difference():
    random = np.random.default_rng(0)
    noisy = [
        np.clip(100 + 10 * random.standard_normal((84, 112, 3)), 0, 255).astype(np.uint8)
        for _ in range(8)
    ]
    kept = run_pruner(
        Pruner(POLICY, MODEL),
        chunks_of([Frame(image, Fraction(i, 2), i) for i, image in enumerate(noisy)]),
    )
    assert kept == [list(range(12)), [], [], []]


def test_alpha_adds_the_difference_to_the_vectors():
    still = np.zeros((6, 7), np.float32)
    images = [np.full((84, 112, 3), 50 + 6 * (i == 3), np.uint8) for i in range(4)]
    frames = [
        Frame(image, Fraction(i, 2), i, Motion(i == 0, still)) for i, image in enumerate(images)
    ]
    for alpha, kept in ((0, 0), (0.05, 0), (0.1, 12)):
        pruner = Pruner(POLICY.model_copy(update={"alpha": alpha}), MODEL)
        assert len(run_pruner(pruner, chunks_of(frames))[1]) == kept


@given(st.integers(1, 400), st.data())
def test_buckets(tokens, data):
    kept = data.draw(st.integers(0, tokens))
    size = bucket(kept, tokens)
    if kept == 0:
        assert size == 0
    elif kept == tokens:
        assert size == tokens + 1
    else:
        assert kept <= size <= tokens
        assert size - kept <= -(-tokens // 4)


@given(st.lists(st.sampled_from([0, 4, 8, 12, 16, 17]), max_size=8))
def test_few_units_go_along_with_larger_ones(buckets):
    runs = merge_buckets(buckets, 16)
    for own, size in zip(buckets, runs, strict=True):
        assert size == own if own in (0, 17) else own <= size <= 16
        assert size in buckets
    assert len({*runs}) <= len({*buckets})


def test_a_run_of_its_own_is_worth_it_for_many():
    assert merge_buckets([4, 4, 8], 16) == [8, 8, 8]
    assert merge_buckets([4, 4, 4, 8], 16) == [4, 4, 4, 8]
    assert merge_buckets([31, 61], 121) == [31, 61]


def test_tokens_are_whole_groups():
    patches = np.zeros((4, 6), bool)
    patches[3, 0] = patches[0, 5] = True
    assert np.flatnonzero(tokens_of(patches)).tolist() == [2, 3]


# ---- the stages ----


def moving_frames(count: int, seed: int = 0) -> list[Frame]:
    """Random pictures; half of the cells' motion is none, and an I picture comes now and then."""
    random = np.random.default_rng(seed)
    told = [
        Motion(i % 14 == 0, np.full((1, 1), random.choice([0, 0, 0, 3]), np.float32))
        for i in range(count)
    ]
    return [
        replace(frame, motion=motion)
        for frame, motion in zip(random_frames(count), told, strict=True)
    ]


def watch(
    drop: str, frames: list[Frame], engines: FakeEngineSet | None = None, overlap: bool = True
):
    engines, events = engines or FakeEngineSet(), []
    chosen = system(
        drop=drop,
        ingest="{policy: all}",
        retrieval="{policy: all}",
        memory="{device_mb: 4, when_full: refuse}",
    )
    with Session(engines, chosen, fps="source", overlap=overlap, on_event=events.append) as session:
        for frame in frames:
            session.push(frame)
        session.finish()
        answer = session.ask("what is there?")
    return answer, [event for event in events if isinstance(event, ChunkEvent)], engines


def test_with_everything_moving_it_is_the_system_without_pruning():
    frames = [replace(frame, motion=Motion(True, None)) for frame in random_frames(21)]
    pruned, chunks, engines = watch(MOTION, frames)
    plain, _, _ = watch("{policy: none}", frames)
    assert (pruned.text, pruned.read, pruned.pages) == (plain.text, plain.read, plain.pages)
    assert all(chunk.kept == chunk.tokens for chunk in chunks)
    assert engines.pruned.runs == []


def test_only_what_is_kept_is_encoded():
    frames = moving_frames(48)
    answer, chunks, engines = watch(MOTION, frames)
    sequential, _, _ = watch(MOTION, frames, overlap=False)
    assert (answer.text, answer.read) == (sequential.text, sequential.read)
    expected = run_pruner(
        Pruner(MotionPruning(tau=0.5, difference=4, refresh=10), engines.model),
        chunks_of(frames, model=engines.model),
    )
    assert [chunk.kept for chunk in chunks] == [
        sum(map(len, expected[4 * i : 4 * i + 4])) for i in range(6)
    ]
    assert 0 < sum(chunk.kept for chunk in chunks) < sum(chunk.tokens for chunk in chunks)
    whole = sum(run["frames"][0] for run in engines.vision.runs) // 2
    assert whole == sum(len(tokens) == 4 for tokens in expected)


def test_rows_are_those_of_the_kept_tokens():
    """What enters the language model, chunk by chunk, against the whole encoder's rows at the
    mask's places."""
    size = {"grid": (4, 4), "max_rows": 64}
    engines, entered, boxed = FakeEngineSet(**size), [], []
    read, see = engines.llm.function, engines.vision.function

    def reading(**bound):
        real = bound["pos"][:, 0] >= 0
        if np.ptp(bound["pos"][real], axis=1).any():  # no prompt or question: its t, h, w are one
            entered.append(np.array(bound["features"][real]))
        return read(**bound)

    def seeing(**bound):
        boxed.append(np.array(bound["frames"]))
        return see(**bound)

    random = np.random.default_rng(1)
    told = [Motion(i == 0, (random.random((2, 2)) < 0.15) * np.float32(9)) for i in range(24)]
    frames = [
        replace(frame, motion=motion)
        for frame, motion in zip(random_frames(24, size=(32, 32)), told, strict=True)
    ]
    engines.llm.function = reading
    watch(MOTION, frames, engines, overlap=False)
    pruned, entered = entered, []
    engines.vision.function = seeing
    watch("{policy: none}", frames, engines, overlap=False)
    pruner, rows = Pruner(MotionPruning(tau=0.5, difference=4, refresh=10), toy_model(**size)), []
    for chunk, shown in zip(chunks_of(frames, model=engines.model), boxed, strict=True):
        whole = see(frames=shown)["features"]
        rows.append(
            np.concatenate(
                [whole[unit][kept.tokens] for unit, kept in enumerate(pruner(chunk, shown))]
            )
        )
    assert len({len(each) for each in rows}) > 1
    for got, expected in zip(pruned, [each for each in rows if len(each)], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("cells", "said"), [(np.ones((1, 1), np.float32), "vectors"), (None, "frames compared")]
)
def test_the_trace_says_where_motion_came_from(cells, said):
    class Spans:
        def __init__(self):
            self.seen = []

        def span(self, track, name, start_ns, end_ns, **args):
            self.seen.append((name, args))

    spans = Spans()
    frames = [replace(frame, motion=Motion(False, cells)) for frame in random_frames(2)]
    with Session(FakeEngineSet(), system(drop=MOTION), trace=spans) as session:
        for frame in frames:
            session.push(frame)
        session.finish()
    assert ("prefill", {"chunk": 0, "motion": said}) in spans.seen


@pytest.mark.parametrize(
    ("backend", "next_step"),
    [
        ("openvino", "rebuild with `vicort-build tiny`"),
        ("tensorrt", "take one of backend openvino"),
    ],
)
def test_a_set_without_the_graph_says_how_to_get_it(backend, next_step):
    engines = FakeEngineSet()
    changes = {"graphs": {}, "backend": backend, "build_command": "vicort-build tiny"}
    engines.manifest = engines.manifest.model_copy(update=changes)
    with pytest.raises(ConfigError, match=next_step):
        watch(MOTION, random_frames(2), engines)


def test_frames_that_are_pushed_but_not_taken_pass_their_motion_on():
    """The session's own sampler takes every second frame; only the others move."""
    still, moved = np.zeros((1, 1), np.float32), np.full((1, 1), 9, np.float32)
    for others, kept in ((still, 4), (moved, 16)):
        told = [Motion(i == 0, others if i % 2 and i > 2 else still) for i in range(16)]
        frames = [
            replace(frame, motion=motion)
            for frame, motion in zip(random_frames(16, fps=4), told, strict=True)
        ]
        engines, events = FakeEngineSet(), []
        with Session(engines, system(drop=MOTION), fps=2, on_event=events.append) as session:
            for frame in frames:
                session.push(frame)
            session.finish()
        (chunk,) = [event for event in events if isinstance(event, ChunkEvent)]
        assert chunk.kept == kept
