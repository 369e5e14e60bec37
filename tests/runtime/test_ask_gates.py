"""Gates of standing questions: when they are closed, and that nothing else changes."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.every_system import ASK, SHORT, SYSTEMS, engines, pictures
from support.fake_engines import FakeEngineSet
from support.remembered import remembered
from support.sizes import examples, slow
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime import ask_gates
from vicort.runtime.core import AskGate, Constraint, Frame, Question, Sampling
from vicort.runtime.errors import QuestionError
from vicort.runtime.session import Session

CHOICES = Constraint(choices=("red", "blue"))
CHANGED = AskGate(changed=True)
STILL = {name: chosen for name, chosen in SYSTEMS.items() if not chosen.long_term}
# one of each kind; the others where slow tests run
QUICK = ("distinct", "timechat-online", "rekv", "simplestream", "sliding", "spilling")
KINDS = st.sampled_from(["all", "window", "choices"])  # of standing questions


def standing(kind, moments, gate):
    """One standing question, asked at these quarters of a second."""
    for quarter in sorted(moments):
        at = Fraction(quarter, 4)
        yield Question(
            ASK,
            at,
            f"{kind} {quarter}",
            sampling=SHORT,
            since=max(Fraction(0), at - 2) if kind == "window" else None,
            constraint=CHOICES if kind == "choices" else None,
            gate=gate and replace(gate, name=kind),
        )


class GatedRun:
    """Questions over a stream that stands still now and then."""

    def __init__(self, chosen, shown, questions, **options):
        self.read = {}  # by question id, what its answer could read: keys, values and visual rows
        self.engines = engines(eos_tokens=(5,))
        with Session(self.engines, chosen, fps="source", sampling=SHORT, **options) as session:
            self._session, take = session, session._answerer._snapshot_in_stream
            session._answerer._snapshot_in_stream = lambda question, *rest: self._note(
                question, take(question, *rest)
            )
            futures = [session.submit(each) for each in questions]
            for frame in shown:
                session.push(frame)
            session.finish()
            self.answers = {answer.id: answer for answer in (each.result() for each in futures)}
            self.state = remembered(session)
        self.runs = len(self.engines.llm.runs), len(self.engines.head.runs)

    def _note(self, question, snapshot):
        tiers, lease = self._session.inspect().memory.tiers, snapshot.lease
        rows = []
        for page, (on_device, slot) in zip(lease.pages, lease.places, strict=True):
            data = (tiers.pool if on_device else tiers.host_pool).data
            rows.append(np.array(np.asarray(data)[slot][..., : page.tokens, :]))
        self.read[question.id] = rows + [np.array(unit.rows) for unit in snapshot.deferred]
        return snapshot

    def asked(self):
        return {each.id: each for each in self.answers.values() if each.asked}


def still(changes):
    """Pictures that stand still but where they change."""
    shown, image = [], pictures(1)[0].image
    for number, change in enumerate(changes):
        if change:
            image = np.roll(image, (change, 2 * change), (0, 1)) ^ np.uint8(37 * change)
        shown.append(Frame(image, Fraction(number, 2), number))
    return shown


def same(one, other):
    return len(one) == len(other) and all(
        a.shape == b.shape and np.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True)
    )


STREAMS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), min_size=4, max_size=20)
MOMENTS = st.sets(st.integers(0, 40), min_size=2, max_size=9)


@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in SYSTEMS if name not in QUICK))])
@settings(max_examples=examples(15), deadline=None)
@given(STREAMS, MOMENTS, KINDS, st.booleans())
def test_a_gate_is_closed_only_where_the_same_would_be_read(name, changes, moments, kind, now):
    """Keys and values of all that is read, and of all else that is remembered nothing new. What is
    asked gets the answer, to the last bit, of a stream without gates."""
    chosen, shown = SYSTEMS[name], still(changes)
    moments = {each for each in moments if each <= 2 * (len(shown) - 1)}
    check(chosen, shown, kind, moments, now, layers=1 if chosen.ingest.slides else None)


def check(chosen, shown, kind, moments, now, layers=None):
    """Returns the answers to those that were asked. layers: how many are compared; None = all."""
    options = {"overlap": False, "freshness": "now" if now else "complete"}
    plain = GatedRun(chosen, shown, standing(kind, moments, None), **options)
    gated = GatedRun(chosen, shown, standing(kind, moments, CHANGED), **options)
    before = None
    for key, answer in gated.answers.items():
        truth = plain.answers[key]
        if answer.asked:
            assert replace(answer, ttft_ms=0) == replace(truth, ttft_ms=0)
            before = truth
            continue
        assert answer.empty == "unchanged"
        assert before is not None
        assert (answer.text, answer.choices, answer.read, answer.tokens) == ("", None, (), 0)
        assert (answer.at, answer.seen_until) == (truth.at, truth.seen_until)
        assert (truth.read, truth.tokens_read) == (before.read, before.tokens_read)
        now_read, then_read = (
            [rows[:layers] for rows in plain.read[each]] for each in (key, before.id)
        )
        assert same(now_read, then_read)
    assert gated.state == plain.state
    only = [each for each in standing(kind, moments, None) if each.id in gated.asked()]
    spared = GatedRun(chosen, shown, only, **options)
    if chosen.long_term:  # where an open chunk runs again, whether anything of it is new or not
        assert gated.runs[1] == spared.runs[1]
    else:
        assert gated.runs == spared.runs
    return gated.asked()


@pytest.mark.parametrize("name", STILL)
def test_a_gate_is_closed_where_nothing_happens(name):
    """From the first asking on while no frame comes; and between two chunks where the system drops
    what stands still."""
    shown = still([0] * 16)
    questions = list(standing("all", range(8, 60, 2), CHANGED))
    twice = [replace(each, id=f"{each.id} again") for each in questions]
    run = GatedRun(STILL[name], shown, [*questions, *twice])
    assert all(not run.answers[each.id].asked for each in twice)
    if name == "timechat-online":
        assert list(run.asked()) == [questions[0].id]


def test_what_left_the_window_of_a_question_opens_its_gate():
    """The first picture is kept and the others are not: its unit is in the window until 2.5 s."""
    shown = still([0] * 16)
    chosen = SYSTEMS["timechat-online"]
    run = GatedRun(chosen, shown, standing("window", range(4, 28, 2), CHANGED))
    assert list(run.asked()) == ["window 4", "window 12"]


def test_a_unit_that_left_the_window_opens_the_gate_where_others_of_its_chunk_stay():
    """Nothing new is in memory: the first chunk is, and the second one is not seen now."""
    asked = check(SYSTEMS["full"], frames(15), "window", range(18, 26, 2), now=True)
    assert list(asked) == ["window 18", "window 20", "window 24"]


def test_a_chunk_that_a_sliding_window_will_displace_opens_the_gate():
    """Deeper layers change a little when the window slides, as positions do."""
    sliding = SYSTEMS["sliding"].with_(drop={"policy": "chunk-intra", "threshold": 0.2})
    asked = check(sliding, still([0] * 30), "all", range(36, 56, 2), now=False, layers=1)
    assert "all 44" in asked


@settings(max_examples=examples(30), deadline=None)
@given(
    st.sets(st.integers(0, 40), min_size=2, max_size=8),
    st.floats(-0.6, 0.6),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_the_gate_of_likeness_compares_what_came_with_the_question(moments, like, window):
    """Where nothing is dropped: the means of each chunk's visual tokens, against the rule."""
    toy, shown = FakeEngineSet(seed=1), frames(21)
    gate = AskGate(like=like)
    questions = [
        Question(
            ASK,
            Fraction(each, 4),
            sampling=SHORT,
            since=None if window is None else max(Fraction(0), Fraction(each, 4) - window),
            gate=gate,
        )
        for each in sorted(moments)
    ]
    with Session(toy, system(**FULL), fps="source", sampling=SHORT, overlap=False) as session:
        futures = [session.submit(each) for each in questions]
        words = session._answerer._query(questions[0])
        for frame in shown:
            session.push(frame)
        session.finish()
        answers = [each.result() for each in futures]
    asked = None  # seconds, what the newest question that was asked saw; -1 = nothing
    for question, answer in zip(questions, answers, strict=True):
        seen = [
            frame
            for frame in shown
            if answer.seen_until is not None and frame.time <= answer.seen_until
        ]
        chunks = [seen[first : first + 8] for first in range(0, len(seen), 8)]
        came = [
            chunk
            for chunk in chunks
            if (asked is None or chunk[-1].time > asked)
            and (question.since is None or ends(chunk)[-1] >= question.since)
        ]
        best = max((cosine(toy, chunk, words) for chunk in came), default=-1.0)
        if asked is not None and abs(best - like) < 1e-4:
            return  # too close to say
        assert answer.asked == (asked is None or best >= like)
        if answer.asked:
            asked = seen[-1].time if seen else -1
        else:
            assert answer.empty == "unlike"


def ends(chunk):
    """When its units end."""
    return [chunk[min(first + 1, len(chunk) - 1)].time for first in range(0, len(chunk), 2)]


def cosine(toy, chunk, words):
    images = [frame.image for frame in (*chunk, *chunk[-1:] * (len(chunk) % 2))]
    mean = toy.see(np.stack(images)).reshape(-1, toy.model.width).mean(axis=0)
    return mean @ words / np.linalg.norm(mean) / np.linalg.norm(words)


def test_standing_questions_are_known_by_text_constraint_and_name(monkeypatch):
    toy = engines()
    with Session(toy, SYSTEMS["full"], fps="source", sampling=SHORT) as session:
        for frame in frames(3):
            session.push(frame)

        def asked(text="what is there?", name="", constraint=None):
            gate = AskGate(changed=True, name=name)
            return session.submit(Question(text, gate=gate, constraint=constraint, at=1)).result()

        assert asked().asked
        assert not asked().asked
        assert asked(name="a").asked
        assert not asked(name="a").asked
        assert asked("what?").asked
        assert not asked().asked
        assert asked(constraint=CHOICES).asked
        assert not asked(constraint=CHOICES).asked
        monkeypatch.setattr(ask_gates, "MAX_STANDING", 2)
        assert asked(name="b").asked
        assert asked(name="c").asked
        assert not asked(name="b").asked
        assert asked(name="d").asked
        assert not asked(name="b").asked
        assert asked(name="c").asked  # it was forgotten


def test_a_question_without_an_answer_is_asked_again():
    toy = engines()
    with Session(toy, SYSTEMS["full"], fps="source", sampling=SHORT) as session:
        for frame in frames(3):
            session.push(frame)
        question = Question(ASK, 1, gate=CHANGED, sampling=SHORT)

        def fail(text):
            raise KeyError(text)

        with pytest.raises(KeyError):
            session.submit(question, fail).result()
        assert session.submit(question).result().asked
        assert not session.submit(question).result().asked


@pytest.mark.parametrize(
    ("gate", "more", "message"),
    [
        (True, {}, r"gate is True: give an AskGate"),
        (AskGate(like=1.5), {}, r"like is 1.5: give a cosine from -1 to 1"),
        (AskGate(like=float("nan")), {}, r"like is nan: give a cosine"),
        (AskGate(like="high"), {}, r"like is 'high': give a cosine"),
        (AskGate(name="x" * 1001), {}, r"name is .*: give a text of at most 1000 characters"),
        (CHANGED, {"conversation": "a"}, r"a gate and a conversation: .* leave one of them out"),
    ],
)
def test_gates_that_no_question_can_have(gate, more, message):
    with (
        Session(engines(), SYSTEMS["full"], sampling=SHORT) as session,
        pytest.raises(QuestionError, match=message),
    ):
        session.submit(Question(ASK, gate=gate, **more))


def test_an_answer_that_was_not_asked_has_no_probability_and_no_time_to_its_first_token():
    shown = still([0] * 6)
    run = GatedRun(SYSTEMS["timechat-online"], shown, standing("choices", [4, 8], CHANGED))
    asked, closed = run.answers.values()
    assert {"probability", "first_probability", "choices"} <= asked.to_json().keys()
    assert not {"probability", "first_probability", "choices", "outside"} & closed.to_json().keys()
    assert closed.to_json()["empty"] == "unchanged"
    assert not closed.doubtful
    with Session(engines(), SYSTEMS["timechat-online"], fps="source") as session:
        for question in standing("all", [4, 8, 12], CHANGED):
            session.submit(replace(question, sampling=Sampling(max_tokens=1)))
        for frame in shown:
            session.push(frame)
        session.finish()
        assert len(session._statistics._ttfts) == 1
