"""Frames of any size through the whole runtime, on a toy model: sizes that change in mid-stream,
and several sources of different aspect on one engine set."""

from __future__ import annotations

import itertools
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from support import videos
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import FULL, system
from support.transcript import Transcript
from support.whole_streams import ASK, answers, chunks, question, run

from vicort.runtime.errors import SourceError
from vicort.runtime.frame_grid import Grid
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.stages.chunker import Chunker

WIDE, HIGH, SQUARE, STRIP = (8, 12), (12, 8), (8, 8), (4, 20)  # pixels; 4 pixels are a token
MOTION = "{policy: motion, tau: 0.5, difference: 4, refresh: 10}"


def engines(seed: int = 3) -> FakeEngineSet:
    """At most six tokens a unit, in any shape."""
    return FakeEngineSet(seed, grid=None, max_pixels=96)


def stream(*parts: tuple[tuple[int, int], int]):
    """Parts of a stream: size and number of frames."""
    starts = itertools.accumulate([0, *(count for _, count in parts)])
    return [
        frame
        for (size, count), start in zip(parts, starts, strict=False)
        for frame in frames(count, size=size, start=start)
    ]


def in_one_pass(engines: FakeEngineSet, parts: list[list], prompt, words: int) -> list[int]:
    """What the model says after parts of a stream, each of one size; half a unit at the end of a
    part is completed by repeating its frame."""
    plain = Transcript(engines, prompt.prefix)
    for part in parts:
        plain.watch(part + part[-1:] * (len(part) % 2))
    return plain.ask(prompt.question(ASK), words)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("counts", [(6, 8, 4), (5, 7, 3), (1, 1, 2), (8, 9, 8)])
def test_a_stream_that_changes_its_size_keeps_its_session_and_its_memory(overlap, counts):
    """Against one pass over everything: a chunk of each grid, each with its own positions."""
    sizes = (WIDE, HIGH, STRIP)
    video, model = stream(*zip(sizes, counts, strict=True)), engines()
    events, summary = run(video, [question(None)], system(**FULL), model, overlap=overlap)
    with Session(model, system(**FULL)) as session:
        prompt = session.inspect().prompt
    parts = [[frame for frame in video if frame.image.shape[:2] == size] for size in sizes]
    (answer,) = answers(events)
    assert answer.text == prompt.decode(in_one_pass(model, parts, prompt, 5))
    tokens = {size: size[0] * size[1] // 16 for size in sizes}
    expected = []
    for size, count in zip(sizes, counts, strict=True):
        full, rest = divmod(count, 8)
        taken = [8] * full + ([rest] if rest else [])
        expected += [(frames, -(-frames // 2) * tokens[size]) for frames in taken]
    assert [(chunk.frames, chunk.kept) for chunk in chunks(events)] == expected
    assert summary.frames == sum(counts)


def test_pages_hold_the_tokens_of_their_own_unit():
    with Session(engines(), system(**FULL)) as session:
        for frame in stream((STRIP, 8), (SQUARE, 6), (WIDE, 4)):
            session.push(frame)
        session.finish()
        memory = session.inspect().memory
        held = [memory.positions(unit) for unit in memory.tiers.units]
    assert [len(positions) for positions in held] == [5] * 4 + [4] * 3 + [6] * 2
    for positions in held:
        assert len(set(positions[:, 0])) == 1  # one time
        assert len(set(map(tuple, positions))) == len(positions)


def test_a_change_of_size_that_keeps_the_grid_closes_no_chunk():
    """As a fixed size does: frames are resized to the same grid."""
    events, _ = run(stream((SQUARE, 3), ((9, 9), 5)), [], system(**FULL), engines())
    assert [(chunk.frames, chunk.tokens) for chunk in chunks(events)] == [(8, 16)]
    fixed = FakeEngineSet(3)
    events, _ = run(stream((WIDE, 3), (HIGH, 5)), [], system(**FULL), fixed)
    assert [(chunk.frames, chunk.tokens) for chunk in chunks(events)] == [(8, 16)]


SYSTEMS = {
    "full": system(**FULL),
    "dropping": system(drop="{policy: chunk-intra, threshold: 0.2}"),
    "ratio": system(drop="{policy: chunk-intra, keep: 0.5}"),
    "spilling": system(memory="{device_mb: 0.95, host_mb: 0.02, when_full: drop-oldest}"),
    "latest": system(ingest="{policy: latest-units, units: 2}", retrieval="{policy: all}"),
    "motion": system(drop=MOTION),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_overlapped_and_sequential_agree_to_the_last_bit_where_sizes_change(name):
    video = stream((WIDE, 13), (HIGH, 9), ((90, 160), 11), (STRIP, 8), (WIDE, 20))

    def asked_once(overlap):
        questions = [question(at, id=str(at)) for at in (0, 3, "7.25", 11, 20, None)]
        events, summary = run(video, questions, SYSTEMS[name], engines(), overlap=overlap)
        said = {a.id: (a.text, a.seen_until, a.read, a.pages, a.tokens) for a in answers(events)}
        placed = [(c.index, c.frames, c.start, c.end, c.tokens, c.kept) for c in chunks(events)]
        return said, placed, summary.pages, summary.frames

    assert asked_once(True) == asked_once(False)


@pytest.mark.parametrize("name", ["full", "motion"])
def test_sources_of_different_aspect_share_an_engine_set(name):
    """Their frames take turns; each session answers as it does alone."""
    model, sizes = engines(), (WIDE, HIGH, STRIP, (90, 160))
    videos = [stream((size, 20)) for size in sizes]

    def said(session):
        answer = session.ask(ASK)
        return answer.text, answer.tokens_read

    alone = []
    for video in videos:
        with Session(engines(), SYSTEMS[name]) as session:
            for frame in video:
                session.push(frame)
            alone.append(said(session))
    sessions = [Session(model, SYSTEMS[name]) for _ in sizes]
    for together in zip(*videos, strict=True):
        for session, frame in zip(sessions, together, strict=True):
            session.push(frame)
    assert [said(session) for session in sessions] == alone
    assert len(set(alone)) > 1
    for session in sessions:
        session.close()


def test_units_that_a_question_prefills_have_the_positions_of_their_own_grid():
    video, model = stream((WIDE, 2), (HIGH, 2)), engines()
    chosen = SYSTEMS["latest"]
    events, _ = run(video, [question(None)], chosen, model)
    with Session(model, chosen) as session:
        prompt = session.inspect().prompt
    (answer,) = answers(events)
    expected = in_one_pass(model, [video[:2], video[2:]], prompt, 5)
    assert answer.text == prompt.decode(expected)
    assert answer.tokens_read == 12


def test_a_frame_that_the_model_does_not_take_is_refused_in_one_line_and_nothing_is_lost():
    with Session(engines(), system(**FULL)) as session:
        for frame in stream((WIDE, 3)):
            session.push(frame)
        with pytest.raises(SourceError, match=r"^at 1\.500 s, a frame of 202x1: one side is"):
            session.push(stream((WIDE, 3), ((1, 202), 1))[-1])
        session.push(stream((WIDE, 5))[-1])
        assert session.ask(ASK).seen_until == Fraction(2)


def test_a_folder_with_an_image_that_is_too_long_is_watched_without_it(tmp_path):
    for i, (width, height) in enumerate([(12, 8), (1000, 4), (12, 8)]):
        videos.write_image(tmp_path / f"{i}.png", np.zeros((height, width, 3), np.uint8))
    with Session(engines(), system(**FULL)) as session, open_source(str(tmp_path)) as source:
        for frame in source.frames(session.wants):
            session.push(frame)
        session.finish()
        assert session.summary().frames == 2
    (warning,) = source.warnings
    assert "1.png is left out" in warning


@pytest.mark.parametrize("sizes", [(WIDE, HIGH), (WIDE,)], ids=["changing", "constant"])
def test_a_question_is_not_held_up_by_a_frame_that_waits_for_room(sizes):
    """Vision waits at a gate, so that a push waits until the gate opens."""
    gate, model, pushed = threading.Event(), engines(), []
    see = model.vision.function
    model.vision.function = lambda **bound: see(**bound) if gate.wait(timeout=30) else {}
    video = stream(*((size, 1) for size, _ in zip(itertools.cycle(sizes), range(80), strict=False)))

    def push():
        for frame in video:
            session.push(frame)
            pushed.append(frame)

    with Session(model, system(**FULL)) as session:
        pusher = threading.Thread(target=push)
        pusher.start()
        count = -1
        while count < len(pushed):  # until a push waits
            count = len(pushed)
            time.sleep(0.2)
        asker = threading.Thread(target=session.submit, args=(question(1000),))
        asker.start()
        asker.join(timeout=5)
        held_up = asker.is_alive()
        gate.set()
        pusher.join(timeout=30)
        asker.join(timeout=30)
        session.finish()
    assert 0 < count < len(pushed) == len(video)
    assert not held_up


# ---- the chunker ----


def grid_of(height: int, width: int) -> Grid:
    return Grid(height // 4, width // 4)


def test_a_new_grid_closes_the_open_chunk_and_completes_its_odd_frame():
    chunker = Chunker(4, grid_of)
    video = stream((WIDE, 3), (HIGH, 1), (WIDE, 4))
    closed = [chunker.add(frame) for frame in video]
    assert [chunk and len(chunk.frames) for chunk in closed] == [None] * 3 + [4, 2] + [None] * 2 + [
        4
    ]
    first, second, third = (chunk for chunk in closed if chunk)
    assert (first.repeated, second.repeated, third.repeated) == (1, 1, 0)
    assert [first.grid, second.grid, third.grid] == [Grid(2, 3), Grid(3, 2), Grid(2, 3)]
    assert [first.first_unit, second.first_unit, third.first_unit] == [0, 2, 3]
    assert chunker.flush() is None


def test_half_a_unit_that_a_cut_left_is_completed_before_the_new_grid():
    chunker = Chunker(8, grid_of)
    assert [chunker.add(frame) for frame in stream((WIDE, 3))] == [None] * 3
    assert chunker.cut().units == 1
    closed = chunker.add(frames(1, size=HIGH)[0])
    assert (len(closed.frames), closed.repeated, closed.grid) == (2, 1, Grid(2, 3))
    assert np.array_equal(closed.frames[0].image, closed.frames[1].image)


def test_a_chunker_says_which_frame_would_close_a_chunk():
    chunker, said, closed = Chunker(4, grid_of), [], []
    for frame in stream((WIDE, 3), (HIGH, 1), (WIDE, 5), (STRIP, 2)):
        said.append(chunker.closes(frame))
        closed.append(chunker.add(frame) is not None)
    assert said == closed
    assert said.count(True) == 4
