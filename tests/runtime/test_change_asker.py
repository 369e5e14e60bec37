"""A standing question at changes of the scene: when it is asked, what its answers see."""

from concurrent.futures import Future
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.sizes import examples

from vicort.runtime.change_asker import ChangeAsker
from vicort.runtime.core import ChunkEvent, Frame, Question, Sampling
from vicort.runtime.errors import ConfigError, SessionClosed, VicortError
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session

ASK = Question("what is there now?", sampling=Sampling(max_tokens=2))
ENGINES = {"grid": None, "max_pixels": 96}  # sizes follow the source, in tokens of 4 x 4 pixels
SYSTEM = load_system("timechat-online").with_(memory={"device_mb": 4, "tokens": None})


def scenes(lengths):
    """Frames, two a second, of so many pictures that have nothing in common, for so many units
    each."""
    random, video = np.random.default_rng(0), []
    for units in lengths:
        image = random.integers(0, 256, (8, 8, 3), np.uint8)
        for _ in range(2 * units):
            video.append(Frame(image, Fraction(len(video), 2), len(video)))
    return video


def watched(lengths, **options):
    """(id, at, seen_until, text) of each answer."""
    asker, futures = ChangeAsker(ASK, SYSTEM), []
    with Session(
        FakeEngineSet(3, **ENGINES), SYSTEM, fps="source", on_event=asker.event, **options
    ) as session:
        for frame in scenes(lengths):
            session.push(frame)
            session.settle()
            futures += asker.advance(session.submit)
        session.finish()
        futures += asker.advance(session.submit)
        session.finish()
    answers = [each.result() for each in futures]
    return [(each.id, each.at, each.seen_until, each.text) for each in answers]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.booleans())
@settings(max_examples=examples(20))
def test_it_is_asked_when_the_first_unit_of_each_new_scene_is_full(lengths, overlap):
    """The answer sees that unit and nothing later, however fast frames are pushed."""
    starts = np.cumsum(lengths)[:-1]  # units, one a second: its frames are at n and n + 1/2
    expected = [Fraction(2 * int(unit) + 1, 2) for unit in starts]
    found = watched(lengths, overlap=overlap)
    assert [at for _, at, _, _ in found] == expected
    assert [seen for _, _, seen, _ in found] == expected
    assert [label for label, _, _, _ in found] == [f"change@{float(at):g}" for at in expected]


def test_overlapped_and_sequential_give_the_same_answers():
    assert watched([2, 1, 3, 2], overlap=True) == watched([2, 1, 3, 2], overlap=False) != []


@pytest.mark.parametrize("name", known_systems())
def test_systems_that_drop_nothing_are_refused_in_one_line(name):
    system = load_system(name)
    if system.drop.policy not in ("none", "few-tokens"):
        ChangeAsker(ASK, system)
        return
    with pytest.raises(ConfigError, match="such as --system timechat-online") as refused:
        ChangeAsker(ASK, system)
    assert "\n" not in str(refused.value)


def test_a_system_that_keeps_the_first_unit_of_a_chunk_is_refused_with_chunks_of_one_unit():
    with pytest.raises(ConfigError, match="every chunk of 2 frames"):
        ChangeAsker(ASK, load_system("distinct"), chunk_frames=2)
    with pytest.raises(ConfigError, match="every chunk of 2 frames"):
        ChangeAsker(ASK, load_system("distinct").with_(chunk={"frames": 2}), chunk_frames=16)


def test_one_that_does_not_wait_skips_changes_until_its_answer_is_there_and_counts_them():
    asker, asked = ChangeAsker(ASK, SYSTEM, waits=False), []

    def submit(question):
        asked.append((question, Future()))
        return asked[-1][1]

    for index in range(5):
        asker.event(chunk(index))
        asker.advance(submit)
    assert ([question.at for question, _ in asked], asker.skipped) == ([1], 3)
    asked[0][1].set_result(None)
    asker.event(chunk(5))
    asker.advance(submit)
    assert ([question.at for question, _ in asked], asker.skipped) == ([1, 5], 3)
    assert asker.advance(submit) == []


def test_one_that_waits_raises_what_the_answer_before_failed_with():
    asker, failed = ChangeAsker(ASK, SYSTEM), Future()
    failed.set_exception(SessionClosed("closed"))
    asker.event(chunk(0))
    asker.event(chunk(1))
    asker.event(chunk(2))
    with pytest.raises(SessionClosed):
        asker.advance(lambda question: failed)


def chunk(index):
    """All of its tokens are kept."""
    return ChunkEvent(index, 2, Fraction(index), Fraction(index), 16, 16, 1.0)


def test_settle_waits_for_the_events_of_all_full_chunks_and_is_refused_in_a_callback():
    ends, refused = [], []

    def event(event):
        with pytest.raises(VicortError, match="settle") as error:
            session.settle()
        refused.append(error)
        ends.append(event.end)

    with Session(FakeEngineSet(3, **ENGINES), SYSTEM, fps="source", on_event=event) as session:
        for number, frame in enumerate(scenes([3, 3]), 1):
            session.push(frame)
            session.settle()
            assert len(ends) == len(refused) == number // 2
    with pytest.raises(SessionClosed):
        session.settle()
