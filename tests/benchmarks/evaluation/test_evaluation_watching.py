"""One pass over a video: what each question may know, in every protocol, and what failures cost."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import evaluation_data as made
from support.fake_engines import FakeEngineSet
from support.scripted_session import ScriptedSession, scripted
from support.sizes import examples
from support.systems import FULL, system
from support.videos import cut

from vicort.benchmarks.evaluation.frame_arrays import FrameArraySource
from vicort.benchmarks.evaluation.items import Item, Video
from vicort.benchmarks.evaluation.watching import Candidate, watch
from vicort.runtime.errors import SourceError
from vicort.runtime.policies.system import load_system

TIMES = st.lists(st.integers(0, 16_000).map(lambda ms: Fraction(ms, 1000)), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return path, made.frame_times(made.make_film(path))


def asked_at(
    path, *times: Fraction, rule: str = "same-text", text: str = "was there a star?"
) -> Video:
    return Video(
        "film",
        path,
        tuple(Item(f"q{n}", "task", rule, "yes", text, (at,)) for n, at in enumerate(times)),
    )


def count(question, seen) -> str:
    return str(len(seen))


@settings(max_examples=examples(25))
@given(
    times=TIMES,
    carry=st.sampled_from(["state", "restart"]),
    context=st.none() | st.integers(1, 20_000),
)
def test_a_question_sees_every_frame_up_to_its_time_and_none_after(film, times, carry, context):
    path, frames = film
    context = Fraction(context, 1000) if context and carry == "restart" else None
    opened: list[ScriptedSession] = []
    watched = watch(asked_at(path, *times), scripted(count, opened), carry, context)
    assert len(opened) == (1 if carry == "state" else len(times))
    assert [reply.at for reply in watched.replies] == sorted(times)
    for reply in watched.replies:
        start = 0 if context is None else reply.at - context
        assert reply.text == str(sum(start <= frame <= reply.at for frame in frames))
    assert all(session.closed for session in opened)


def seen_until(frames: list[Fraction], at: Fraction, fps: int = 2) -> Fraction:
    """Time of the newest frame that has come, in words: every k/2 s the first frame from then
    on; and the last frame of all, once the next of these moments and half a second have passed."""
    taken: list[Fraction] = []
    for frame in frames:
        if not taken or frame >= Fraction(len(taken), fps):
            taken.append(frame)
    if at > Fraction(len(taken) + 1, fps):
        return frames[-1]
    return max((time for time in taken if time <= at), default=Fraction(0))


@settings(max_examples=examples(6))
@given(times=TIMES)
# the last frame's: half a unit waits, and the question sees it
@example(times=[Fraction(57, 4)])
@example(times=[Fraction(15), Fraction(15_001, 1000)])
def test_a_real_session_knows_the_newest_frame(film, times):
    path, frames = film
    engines = FakeEngineSet()
    watched = watch(
        asked_at(path, *times), Candidate.of(engines, system(), overlap=True), max_tokens=2
    )
    assert [(reply.at, reply.seen_until, reply.error) for reply in watched.replies] == [
        (at, seen_until(frames, at), "") for at in sorted(times)
    ]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_question_leaves_no_trace(film, overlap):
    """One pass with all questions, and a fresh session for each, answer alike where everything is
    kept."""
    path, _ = film
    engines = FakeEngineSet()
    video = asked_at(path, *(Fraction(n) for n in (2, 2, 5, 9)))
    answers = [
        [
            reply.text
            for reply in watch(
                video, Candidate.of(engines, system(**FULL), overlap=overlap), carry, max_tokens=4
            ).replies
        ]
        for carry in ("state", "restart")
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1, "or it would show nothing"


@pytest.mark.parametrize("carry", ["state", "restart"])
def test_polls_end_with_the_first_yes(film, carry):
    path, _ = film
    polls = tuple(Fraction(second) for second in range(3, 11))
    video = Video(
        "film",
        path,
        (
            Item("po", "PO", "first-yes", "7", "now?", polls),
            Item("q", "task", "same-text", "no", "else?", (Fraction(9),)),
        ),
    )
    opened: list[ScriptedSession] = []
    script = lambda question, seen: "Yes." if question.text == "now?" and seen[-1] >= 6 else "no"
    watched = watch(video, scripted(script, opened), carry)
    assert [(reply.item, reply.at) for reply in watched.replies] == [
        ("po", 3),
        ("po", 4),
        ("po", 5),
        ("po", 6),
        ("q", 9),
    ]
    assert len(opened) == (1 if carry == "state" else 5)


@pytest.mark.parametrize("motion", [False, True])
def test_motion_is_read_for_systems_that_prune_by_it(film, motion):
    opened: list[ScriptedSession] = []
    watch(asked_at(film[0], Fraction(3)), replace(scripted(count, opened), motion=motion))
    assert opened[0].told_motion is motion
    assert Candidate.of(FakeEngineSet(), load_system("codecflow")).motion
    assert not Candidate.of(FakeEngineSet(), load_system("uniform")).motion


def test_frames_after_the_last_question_are_not_watched(film):
    path, frames = film
    opened: list[ScriptedSession] = []
    watch(asked_at(path, Fraction(3)), scripted(count, opened))
    assert opened[0].seen == [frame for frame in frames if frame <= 3]
    assert not opened[0].finished


def test_a_system_that_cannot_go_on_costs_its_open_questions(film):
    path, _ = film
    times = [Fraction(n) for n in (1, 4, 6)]
    watched = watch(asked_at(path, *times), scripted(count, fails_at=Fraction(5)))
    assert [(reply.at, reply.error) for reply in watched.replies] == [
        (1, ""),
        (4, ""),
        (6, "memory is full: give more"),
    ]


def test_a_question_that_the_engine_cannot_take_costs_only_itself(film):
    path, _ = film
    engines = FakeEngineSet()
    long = Item("long", "task", "same-text", "x", "was there a star? " * 20, (Fraction(3),))
    video = Video("film", path, (long, *asked_at(path, Fraction(5)).items))
    watched = watch(video, Candidate.of(engines, system()), max_tokens=2)
    assert "tokens, this engine takes 32" in watched.replies[0].error
    assert watched.replies[1].error == ""
    assert watched.replies[1].pages > 0


def test_a_file_that_breaks_off_is_asked_about_as_far_as_it_goes(film, tmp_path):
    path, frames = film
    import av

    whole = tmp_path / "whole.ts"
    with av.open(str(path)) as source, av.open(str(whole), "w") as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    watched = watch(
        asked_at(cut(whole, tmp_path / "cut.ts", 0.6), Fraction(1), Fraction(14)), scripted(count)
    )
    assert watched.replies[0].text == str(sum(frame <= 1 for frame in frames))
    assert 0 < int(watched.replies[1].text) < len(frames)


@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 9),
    fps=st.sampled_from([Fraction(1), Fraction(2)]),
    ms=st.integers(0, 9999),
)
def test_an_array_is_a_video_of_its_frames(tmp_path, frames, fps, ms):
    pixels = np.arange(frames * 4 * 6 * 3, dtype=np.uint64).reshape(frames, 4, 6, 3)
    array = (pixels * 7 % 251).astype(np.uint8)
    np.save(tmp_path / "film.npy", array)
    with FrameArraySource(tmp_path / "film.npy", fps=fps) as source:
        read = list(source.frames())
    assert [(frame.time, frame.index) for frame in read] == [(n / fps, n) for n in range(frames)]
    assert all((frame.image == array[frame.index]).all() for frame in read)
    video = replace(asked_at(tmp_path / "film.npy", Fraction(ms, 1000)), image_fps=fps)
    (reply,) = watch(video, scripted(count)).replies
    assert reply.text == str(sum(n / fps <= Fraction(ms, 1000) for n in range(frames)))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 4, 4, 4), np.uint8), r"an array \[3, 4, 4, 4\] of uint8: give frames"),
        (np.zeros((3, 4, 4, 3), np.float32), "of float32: give frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"an array \[0, 4, 4, 3\] of uint8"),
        (np.array([{}], object), "is no NumPy array"),
    ],
)
def test_an_array_that_is_no_video_is_refused(tmp_path, array, said):
    np.save(tmp_path / "film.npy", array, allow_pickle=True)
    with pytest.raises(SourceError, match=said) as refusal:
        watch(asked_at(tmp_path / "film.npy", Fraction(1)), scripted(count))
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / "film.mp4").write_text("no video")
    with pytest.raises(SourceError, match=r"film\.mp4"):
        watch(asked_at(tmp_path / "film.mp4", Fraction(1)), scripted(count))
