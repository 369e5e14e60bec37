"""TimeChat-Online's differential token drop on streams, against its rule in NumPy over the whole
video: chunks, cuts and questions must not show in what is kept."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.sizes import examples

from vicort.runtime.core import ChunkEvent, Frame, Sampling
from vicort.runtime.policies.system import load_system, parse_system
from vicort.runtime.session import Session

ASK = "what color was the circle?"
SHORT = Sampling(max_tokens=2)
ENGINES = {"grid": None, "max_pixels": 96}  # sizes follow the source, in tokens of 4 x 4 pixels


def differential(threshold=0.8):
    return parse_system(
        f"""
        name: test
        drop: {{policy: differential, threshold: {threshold}}}
        ingest: {{policy: recent-chunks, chunks: 2}}
        retrieval: {{policy: all}}
        memory: {{device_mb: 4, when_full: drop-oldest}}
        """,
        "test.yaml",
    )


def pictures(seed, lengths):
    """Frames in runs of so many units; each run has another size than the one before, and tokens
    that stand still, drift or jump."""
    random, number, video = np.random.default_rng(seed), 0, []
    for run, units in enumerate(lengths):
        size = [(8, 8), (8, 12)][run % 2]
        image = random.integers(0, 256, (*size, 3), np.uint8)
        for _ in range(2 * units):
            rows, columns = random.integers(0, size[0] // 4), random.integers(0, size[1] // 4)
            cell = slice(4 * rows, 4 * rows + 4), slice(4 * columns, 4 * columns + 4)
            image = image.copy()
            noise = random.integers(0, 256, (4, 4, 3))
            image[cell] = noise if random.random() < 0.4 else (3 * image[cell] + noise) // 4
            video.append(Frame(image, Fraction(number, 2), number))
            number += 1
    return video


def kept_by_the_rule(engines, video, threshold):
    """Of each unit, the indices of the tokens that are not dropped."""
    kept, before = [], None
    for first in range(0, len(video), 2):
        frames = np.stack([frame.image for frame in video[first : first + 2]])
        tokens = engines.see(frames)[0]
        if before is None or before.shape != tokens.shape:
            kept.append(list(range(len(tokens))))
        else:
            lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(tokens, axis=1)
            cosine = (before * tokens).sum(axis=1) / lengths
            kept.append(np.flatnonzero(cosine <= threshold).tolist())
        before = tokens
    return kept


def kept_in_memory(session, video):
    memory = session.inspect().memory
    first, kept = memory.timeline.first, []
    for unit in range(len(video) // 2):
        if unit not in memory.tiers.units:
            kept.append([])
            continue
        columns = video[2 * unit].image.shape[1] // 4
        places = memory.positions(unit)[:, 1:] - first
        kept.append((places[:, 0] * columns + places[:, 1]).tolist())
    return kept


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    asked=st.sets(st.integers(0, 40), max_size=5),
    overlap=st.booleans(),
)
@settings(max_examples=examples(25))
def test_what_is_kept_is_what_the_rule_keeps_of_the_whole_video(seed, lengths, asked, overlap):
    """Questions come between any two frames: they cut chunks, and see half units that the stream
    does not store."""
    engines, video, events = FakeEngineSet(seed, **ENGINES), pictures(seed, lengths), []
    with Session(
        engines, differential(), overlap=overlap, on_event=events.append, sampling=SHORT
    ) as session:
        for number, frame in enumerate(video):
            session.push(frame)
            if number in asked:
                session.ask(ASK)
        session.finish()
        found = kept_in_memory(session, video)
    expected = kept_by_the_rule(engines, video, 0.8)
    assert found == expected
    chunks = [event for event in events if isinstance(event, ChunkEvent)]
    assert sum(event.kept for event in chunks) == sum(map(len, expected))
    for event in chunks:
        assert event.drop_ratio == pytest.approx((event.tokens - event.kept) / event.tokens)


def test_half_a_unit_is_compared_with_the_unit_before():
    """The question's own half unit is all that it reads of a picture with one new token."""
    engines = FakeEngineSet(3, **ENGINES)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    changed = image.copy()
    changed[:4, :4] = 255 - changed[:4, :4]
    with Session(engines, differential(), sampling=SHORT) as session:
        for number in range(6):
            session.push(Frame(image, Fraction(number, 2), number))
        session.push(Frame(changed, Fraction(3), 6))
        answer = session.ask(ASK)
    assert answer.tokens_read == 4 + 1  # the first unit, and what changed
    assert answer.seen_until == 3


def test_a_picture_that_stands_still_is_kept_once_and_questions_go_on():
    engines, events = FakeEngineSet(3, **ENGINES), []
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    with Session(engines, differential(), on_event=events.append, sampling=SHORT) as session:
        for number in range(33):
            session.push(Frame(image, Fraction(number, 2), number))
        answer = session.ask(ASK)
    ratios = [event.drop_ratio for event in events if isinstance(event, ChunkEvent)]
    assert ratios == [0.75, 1, 1, 1]  # chunks of four units
    assert (answer.tokens_read, answer.seen_until) == (4, 16)
    assert answer.text


def test_the_system_file_says_what_the_paper_says():
    system = load_system("timechat-online")
    assert (system.drop.policy, system.drop.threshold) == ("differential", 0.5)
    assert system.memory.tokens == 6000
