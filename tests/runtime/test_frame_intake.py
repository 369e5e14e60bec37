"""Which frames become part of the stream, in which units and chunks, and which of them a question
sees."""

from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import videos
from support.fake_engines import FakeEngineSet
from support.sizes import examples
from support.streams import frames
from support.systems import FULL, SYSTEMS, system
from support.whole_streams import ASK, SHORT, answers, chunks, feed, question, run

from vicort.runtime.core import Frame
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source


@pytest.mark.parametrize(
    ("at", "seen"),
    [("0.4", 0), ("0.5", "0.5"), ("0.9", "0.5"), ("1.4", 1), ("1.5", "1.5"), ("6", 6)],
)
def test_a_question_sees_every_frame_that_has_come_and_nothing_later(at, seen):
    events, _ = run(frames(20), [question(at)], system(**FULL))
    (answer,) = answers(events)
    assert answer.at == Fraction(at)
    assert answer.seen_until == Fraction(seen)
    assert answer.read == ((Fraction(0), Fraction(seen)),)


@pytest.mark.parametrize("system_name", ["full", "latest", "even"])
@pytest.mark.parametrize(
    ("times", "at", "seen"),
    [
        (["0", "0.6", "10", "60"], 30, 10),
        (["0", "10", "20", "30"], 25, 20),
        (["0", "10", "20", "30"], 29, 20),
        (["0", "3600"], 1800, 0),
        (["0", "1", "2", "3", "4"], "3.9", 3),
        (["0", "0.5", "1", "1.5", "7"], 5, "1.5"),
        (["0", "0.2", "10"], 5, "0.2"),
        (["0", "0.1", "0.2", "0.3"], 30, "0.3"),
        (["0", "0.5", "0.6", "10", "10.1", "60"], 30, "10.1"),
    ],
)
def test_the_last_picture_stays_until_the_next_one(times, at, seen, system_name):
    pictures = [
        Frame(each.image, Fraction(time), each.index)
        for each, time in zip(frames(len(times)), times, strict=True)
    ]
    events, summary = run(pictures, [question(at)], SYSTEMS[system_name])
    (answer,) = answers(events)
    assert answer.seen_until == answer.read[-1][1] == Fraction(seen)
    assert summary.frames == sum(each.frames for each in chunks(events))


BURSTS = st.lists(st.sampled_from(["0.1", "0.2", "0.4", "0.5", "3"]), min_size=1, max_size=12)


@settings(max_examples=examples(20), deadline=None)
@given(BURSTS, st.integers(0, 40), st.booleans())
def test_a_question_sees_the_picture_on_the_screen_and_leaves_no_trace(steps, halves, push_all):
    """Whether all frames are pushed, or those that are wanted and the ones before, where they are
    wanted, too."""
    times = [Fraction(0), *accumulate(map(Fraction, steps))]
    pictures = [Frame(frames(1)[0].image, time, number) for number, time in enumerate(times)]
    at, kept = Fraction(halves, 2), []
    for asked in ([], [at]):
        with Session(FakeEngineSet(layers=1), system(**FULL), overlap=False) as session:
            answer = [session.submit(question(each)) for each in asked]
            if push_all:
                for picture in pictures:
                    session.push(picture)
            session.finish(None if push_all else feed(session, pictures))
            memory = session.inspect().memory
            kept.append([memory.positions(unit).tolist() for unit in memory.tiers.units])
    shown = max(time for time in times if time <= at)
    seen = answer[0].result().seen_until or Fraction(0)  # None: before the first frame
    assert shown - 1 < seen <= shown
    if at >= shown + 1:
        assert seen == shown
    if at <= times[-1]:
        assert kept[0] == kept[1]


def test_the_last_picture_of_a_burst_is_stored_where_no_question_asks_for_it():
    times = ["0", "0.1", "3"]  # the second one is on the screen at 0.5
    with Session(FakeEngineSet(layers=1), system(**FULL), overlap=False) as session:
        for picture, time in zip(frames(3), times, strict=True):
            session.push(Frame(picture.image, Fraction(time), picture.index))
        session.finish()
        assert session.summary().frames == 3


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_burst_of_a_file_is_seen_to_its_end(tmp_path, isolate, ahead):
    """The last picture of a burst, and the last one of the file, which lasts as the file says."""
    path = tmp_path / "burst.mp4"
    times = list(map(Fraction, ["0", "0.2", "10", "10.1", "10.2"]))
    videos.write_video(path, times, last=50, encoder={"bf": "0"})
    found = []
    with (
        Session(FakeEngineSet(), system(**FULL), on_event=found.append) as session,
        open_source(str(path), isolate=isolate) as source,
    ):
        if ahead:
            source.expect(session.rate)
        for at in (5, 11, None):
            session.submit(question(at, id=str(at)))
        for frame in source.frames(session.wants):
            session.push(frame)
        assert source.ending.time == Fraction("60.2")
        session.finish(source.ending)
    seen = {answer.id: answer.seen_until for answer in answers(found)}
    late = Fraction("10.2")
    assert seen == {"5": Fraction("0.2"), "11": late, "None": late}


def test_a_held_picture_completes_its_unit_and_no_more():
    """However long it stays: each picture is in one unit, alone."""
    pictures = [Frame(each.image, Fraction(3600 * each.index), each.index) for each in frames(6)]
    with Session(FakeEngineSet(layers=1), system(**FULL), overlap=False) as session:
        for picture in pictures:
            session.push(picture)
        session.finish()
        pages = [session.inspect().memory.tiers.locations(unit)[0].page for unit in range(6)]
        assert len(session.inspect().memory.tiers.units) == 6
    assert [(page.start, page.end) for page in pages] == [(3600 * i, 3600 * i) for i in range(6)]


@pytest.mark.parametrize("fps", [None, "source"])
def test_frames_that_are_not_later_are_left_out_and_counted(fps):
    video = frames(12)
    late = [Frame(video[3].image, each.time, 0) for each in (video[5], video[9], video[0])]
    order = [*video[:6], late[0], *video[6:10], late[1], *video[10:], late[2]]
    found = []
    for pushed in (video, order):
        with Session(FakeEngineSet(), system(**FULL), fps=fps, sampling=SHORT) as session:
            for frame in pushed:
                session.push(frame)
            session.finish()
            found.append((session.ask(ASK).text, session.summary()))
    (plain, whole), (mixed, counted) = found
    assert plain == mixed
    assert (whole.late, counted.late) == (0, 3)
    assert whole.frames == counted.frames == len(video)


def test_every_frame_at_its_own_rate_is_never_repeated():
    pictures = [Frame(each.image, Fraction(10 * each.index), each.index) for each in frames(6)]
    events, _ = run(pictures, [question(None)], system(**FULL), fps="source")
    assert sum(each.frames for each in chunks(events)) == 6
    assert sum(each.tokens for each in chunks(events)) == 3 * 4


def test_chunks_end_where_they_end_without_questions_and_no_frame_is_lost():
    events, summary = run(frames(20), [question("2.5"), question("5.25")], system(**FULL))
    assert [(c.index, c.frames, c.start, c.end) for c in chunks(events)] == [
        (0, 8, 0, Fraction(7, 2)),
        (1, 8, 4, Fraction(15, 2)),
        (2, 4, 8, Fraction(19, 2)),
    ]
    assert summary.frames == 20


def test_each_unit_is_encoded_once_but_for_half_units_of_questions():
    """At 1.25 and 3.25 s the newest frame is half a unit: it is encoded again as a whole one."""
    engines = FakeEngineSet()
    run(frames(16), [question(at) for at in ("1.25", "1.5", "1.5", "3.25")], system(), engines)
    assert [run["frames"][0] // 2 for run in engines.vision.runs] == [2, 1, 2, 1, 4]
    assert [run["features"][0] for run in engines.tokens.runs] == [2, 2, 4, 4, 4]


def test_the_work_for_questions_is_reported_apart():
    _, plain = run(frames(16))
    assert set(plain.fork_ms.values()) == {0}
    _, asked = run(frames(16), [question("1.5")])
    assert min(asked.fork_ms.values()) > 0
    assert asked.fork_ms.keys() == asked.stage_ms.keys()


def test_later_frames_never_change_an_earlier_answer():
    short, _ = run(frames(12), [question(4)], system(**FULL))
    long, _ = run(frames(12) + frames(20, seed=9, start=12), [question(4)], system(**FULL))
    assert answers(short)[0].text == answers(long)[0].text


def test_a_question_far_past_the_end_is_asked_at_the_end():
    (answer,) = answers(run(frames(8), [question(1000)])[0])
    assert (answer.at, answer.seen_until) == (1000, Fraction(7, 2))
