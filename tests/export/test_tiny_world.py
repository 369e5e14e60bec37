"""The stream world: deterministic, inside the frame, and each question has the answer that follows
from what came."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.export.tiny.reels import labels
from vicort.export.tiny.world import (
    COLORS,
    MOST,
    NUMBERS,
    RADIUS,
    SHAPES,
    SMALLEST,
    StreamPlan,
    Thing,
    ThingStream,
    make_stream,
    plural,
    shifted,
)
from vicort.export.tiny.world_questions import KINDS, all_questions

SHARES = st.sampled_from([0.0, 0.3, 1.0])
PLANS = st.builds(
    StreamPlan,
    stay=st.sampled_from([(0.5, 1.6), (1.0, 1.0), (2.0, 7.0)]),
    touching=SHARES,
    beside=SHARES,
    again=st.sampled_from([0.0, 0.3, 0.9]),
    growing=SHARES,
    covered=SHARES,
)
ASPECTS = st.sampled_from([0.5, 0.5625, 0.75, 1.0, 4 / 3, 16 / 9, 2.0, 21 / 9])


@st.composite
def streams(draw, plans: st.SearchStrategy[StreamPlan] = PLANS) -> ThingStream:
    return make_stream(
        draw(st.integers(0, 10**6)),
        draw(st.integers(0, MOST)),
        draw(ASPECTS),
        draw(st.sampled_from([0.0, 1.0])),
        draw(st.sampled_from([0.0, 2.0])),
        draw(plans),
    )


def moments(stream: ThingStream) -> list[float]:
    """Times between which the frame shows the same things."""
    borders = sorted({0.0, stream.duration, *(b for t in stream.things for b in (t.start, t.end))})
    return [*borders, *((a + b) / 2 for a, b in pairwise(borders))]


# ---- streams


@given(
    seed=st.integers(0, 10**6),
    objects=st.integers(0, MOST),
    aspect=ASPECTS,
    plan=PLANS,
    lead=st.sampled_from([0.0, 1.5]),
    tail=st.sampled_from([0.0, 2.0]),
)
@settings(max_examples=examples(60))
def test_a_stream_follows_from_its_seed_and_has_what_was_asked_for(
    seed: int, objects: int, aspect: float, plan: StreamPlan, lead: float, tail: float
) -> None:
    stream = make_stream(seed, objects, aspect, lead, tail, plan)
    assert stream == make_stream(seed, objects, aspect, lead, tail, plan)
    assert len(stream.things) == objects
    starts = [thing.start for thing in stream.things]
    assert starts == sorted(starts)
    assert min(starts, default=lead) == lead
    last = max((thing.end for thing in stream.things), default=lead)
    assert stream.duration == pytest.approx(last + tail)
    for thing in stream.things:
        assert plan.stay[0] - 1e-9 <= thing.end - thing.start <= plan.stay[1] + 1e-9


def test_another_seed_is_another_stream() -> None:
    assert make_stream(1, 5) != make_stream(2, 5)


@given(streams())
@settings(max_examples=examples(100))
def test_things_are_inside_the_frame_and_large_enough_at_all_times(stream: ThingStream) -> None:
    short, long = min(1.0, stream.aspect), max(1.0, stream.aspect)
    for thing in stream.things:
        for time in np.linspace(thing.start, thing.end, 5):
            x, y = thing.center(float(time))
            radius = thing.radius_at(float(time))
            assert abs(x) + radius <= stream.aspect / 2 + 1e-6
            assert abs(y) + radius <= 0.5 + 1e-6
            assert SMALLEST * long - 1e-9 <= radius <= RADIUS[1] * short + 1e-9
        if thing.way == "nowhere":
            assert thing.travel == 0
        else:
            assert thing.travel >= 0.06 * long
        assert thing.hidden == 0 or 0.1 <= thing.hidden <= 0.35


@given(streams())
@settings(max_examples=examples(100))
def test_at_most_two_things_are_there_at_once_and_they_stand_side_by_side(
    stream: ThingStream,
) -> None:
    for time in moments(stream):
        there = [thing for thing in stream.things if thing.start <= time < thing.end]
        assert sorted(there, key=lambda thing: thing.center(time)[0]) == list(stream.at(time))
        assert len(there) <= 2
        if len(there) == 2:
            left, right = stream.at(time)
            assert left.center(time)[0] + left.radius_at(time) <= 1e-9
            assert right.center(time)[0] - right.radius_at(time) >= -1e-9
            assert {left.way, right.way} == {"nowhere"}
            assert left.growth == right.growth == 1


@given(streams())
@settings(max_examples=examples(60))
def test_no_two_things_have_shape_and_colour_in_common(stream: ThingStream) -> None:
    looks = Counter((thing.shape, thing.color) for thing in stream.things)
    assert max(looks.values(), default=1) == 1
    assert {shape for shape, _ in looks} <= set(SHAPES)
    assert {color for _, color in looks} <= set(COLORS)


@given(streams(st.just(StreamPlan())))
@settings(max_examples=examples(40))
def test_where_nothing_comes_again_shapes_and_colours_are_used_up_first(
    stream: ThingStream,
) -> None:
    count = len(stream.things)
    assert len({thing.shape for thing in stream.things}) == min(count, len(SHAPES))
    assert len({thing.color for thing in stream.things[: len(COLORS)]}) == min(count, len(COLORS))


# ---- plans: a share of 1 is all, 0 is none, and 0.5 about half


@given(seed=st.integers(0, 10**6), gap=st.sampled_from([(0.5, 2.0), (1.0, 1.0)]))
@settings(max_examples=examples(30))
def test_things_touch_or_leave_a_gap(seed: int, gap: tuple[float, float]) -> None:
    touching = make_stream(seed, 7, plan=StreamPlan(gap=gap, touching=1.0)).things
    assert [b.start - a.end for a, b in pairwise(touching)] == [0.0] * 6
    apart = make_stream(seed, 7, plan=StreamPlan(gap=gap)).things
    for before, thing in pairwise(apart):
        assert gap[0] - 1e-9 <= thing.start - before.end <= gap[1] + 1e-9


@given(seed=st.integers(0, 10**6))
@settings(max_examples=examples(30))
def test_every_second_thing_comes_beside_the_one_before_where_all_should(seed: int) -> None:
    things = make_stream(seed, 8, plan=StreamPlan(beside=1.0)).things
    for index, (before, thing) in enumerate(pairwise(things)):
        if index % 2 == 0:
            assert before.start < thing.start < before.end
        else:
            assert thing.start >= max(before.end, things[index - 1].end)


def share(field: str, value: float, is_so) -> float:
    """Of the things of a hundred streams."""
    plan = replace(StreamPlan(), **{field: value})
    made = [make_stream(seed, 6, plan=plan).things for seed in range(100)]
    return float(np.mean([is_so(k, things) for things in made for k in range(1, 6)]))


@pytest.mark.parametrize(
    ("field", "is_so"),
    [
        ("touching", lambda k, things: things[k].start == things[k - 1].end),
        ("growing", lambda k, things: things[k].growth != 1),
        ("covered", lambda k, things: things[k].hidden > 0),
        ("again", lambda k, things: things[k].shape in {each.shape for each in things[:k]}),
    ],
)
def test_shares_of_a_plan_are_kept(field: str, is_so) -> None:
    assert share(field, 0.0, is_so) == 0
    assert share(field, 0.5, is_so) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("objects", [-1, MOST + 1])
def test_more_things_than_have_numbers_are_refused(objects: int) -> None:
    with pytest.raises(ValueError, match=f"objects={objects}: a stream holds 0 to 12 things"):
        make_stream(0, objects)


def test_a_plan_in_which_no_new_shape_comes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"again=1.0: a share of 0 or more, and below 1"):
        make_stream(0, 8, plan=StreamPlan(again=1.0))


@given(streams(), st.sampled_from([0.5, 3.0]))
@settings(max_examples=examples(30))
def test_a_shifted_stream_is_the_same_later(stream: ThingStream, seconds: float) -> None:
    later = shifted(stream, seconds)
    assert later.duration == stream.duration + seconds
    for before, after in zip(stream.things, later.things, strict=True):
        assert after == replace(before, start=before.start + seconds, end=before.end + seconds)


@given(streams(), st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=examples(40))
def test_labels_are_the_things_of_each_frame_from_left_to_right(
    stream: ThingStream, step: float
) -> None:
    times = [index * step for index in range(2 * int(stream.duration / step / 2 + 1))]
    found = labels(stream, times)
    assert found.shape == (len(times) // 2, 2, 2)
    for time, row in zip(times, found.reshape(-1, 2), strict=True):
        shown = [stream.things[index] for index in row if index >= 0]
        assert shown == list(stream.at(time))
        assert (row[len(shown) :] == -1).all()


# ---- questions


def truth(question: str, things: tuple[Thing, ...], now: tuple[Thing, ...]) -> list[str]:
    """The answers that are true, read from the words of the question."""
    words = question.rstrip("?").split()
    names = [f"{thing.color} {thing.shape}" for thing in things]
    shape, color = words[-1], words[-1]
    if question == "what is there now?":
        return [" and ".join(f"{thing.color} {thing.shape}" for thing in now) or "nothing"]
    if question == "which came first?":
        return names[:1] or ["nothing"]
    if question == "which came last?":
        return names[-1:] or ["nothing"]
    if question == "how many shapes were there?":
        return [NUMBERS[len(things)]]
    if words[:2] == ["how", "many"]:
        return [NUMBERS[sum(plural(thing.shape) == words[2] for thing in things)]]
    if words[:2] == ["was", "there"]:
        return ["yes" if any(thing.shape == shape for thing in things) else "no"]
    if words[:3] == ["what", "shape", "was"]:
        return [thing.shape for thing in things if thing.color == color] or ["none"]
    if words[:3] == ["what", "came", "after"]:
        return [([*names, "nothing"])[k + 1] for k, t in enumerate(things) if t.shape == shape]
    if words[:2] == ["which", "way"]:
        return [t.way for t in things if t.shape == shape and t not in now]
    assert words[:4] == ["what", "color", "was", "the"]
    found = [thing.color for thing in things if thing.shape == shape]
    if words[4] in ("first", "last"):
        return [found[0 if words[4] == "first" else -1]]
    return found or ["none"]


@given(streams(), st.floats(0, 1))
@settings(max_examples=examples(150))
def test_every_question_has_one_true_answer(stream: ThingStream, part: float) -> None:
    time = part * stream.duration
    things = tuple(thing for thing in stream.things if thing.start <= time)
    now = stream.at(time)
    asked = all_questions(things, now)
    assert len({each.question for each in asked}) == len(asked)
    for each in asked:
        assert truth(each.question, things, now) == [each.answer], each.question
        if each.about is not None:  # those things are all that one must have seen
            alone = tuple(things[index] for index in each.about)
            assert truth(each.question, alone, ()) == [each.answer]


@given(streams())
@settings(max_examples=examples(60))
def test_what_has_one_answer_is_asked_and_nothing_else(stream: ThingStream) -> None:
    things = stream.things
    asked: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for each in all_questions(things):
        asked[each.kind].add(each.question)
    shapes = Counter(thing.shape for thing in things)
    colors = Counter(thing.color for thing in things)
    once = {shape for shape in SHAPES if shapes[shape] == 1}
    several = {shape for shape in SHAPES if shapes[shape] > 1}
    assert asked["color"] == {
        f"what color was the {shape}?" for shape in SHAPES if shapes[shape] <= 1
    }
    assert asked["shape"] == {f"what shape was {color}?" for color in COLORS if colors[color] <= 1}
    assert asked["after"] == {f"what came after the {shape}?" for shape in once}
    assert asked["way"] == {f"which way went the {shape}?" for shape in once}
    assert asked["again"] == {
        f"what color was the {word} {shape}?" for shape in several for word in ("first", "last")
    }
    assert asked["often"] == {f"how many {plural(shape)} were there?" for shape in shapes}
    assert asked["any"] == {f"was there a {shape}?" for shape in SHAPES}


def test_which_way_a_thing_goes_is_not_asked_while_it_is_there() -> None:
    (thing,) = make_stream(3, 1).things
    assert not [each for each in all_questions((thing,), (thing,)) if each.kind == "way"]


def test_answers_about_two_things_name_both_from_left_to_right() -> None:
    stream = make_stream(5, 2, plan=StreamPlan(beside=1.0))
    left, right = stream.at(stream.things[1].start)
    (now,) = [each for each in all_questions(stream.things, (left, right)) if each.kind == "now"]
    assert now.answer == f"{left.color} {left.shape} and {right.color} {right.shape}"


def test_nothing_comes_to_nothing() -> None:
    asked = {each.question: each.answer for each in all_questions(())}
    assert asked["what is there now?"] == asked["which came first?"] == "nothing"
    assert asked["how many shapes were there?"] == "zero"
