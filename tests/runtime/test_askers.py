"""What askers and callbacks do to a session: give up, raise, wait, fork, ask too much. Whatever it
is, it harms nothing else."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.reported_streams import small
from support.simulated_cuda import SimulatedEngineSet
from support.sizes import examples
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime import conversations
from vicort.runtime.core import Answer, ChunkEvent, Frame, Question, Sampling, Spoken
from vicort.runtime.errors import (
    ConfigError,
    MemoryBudgetError,
    QuestionError,
    SessionClosed,
    VicortError,
)
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session
from vicort.runtime.shared_session import SharedSession

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"
LATER = Fraction(10**6)


def opened(engines=None, chosen=None, video=8, **options) -> Session:
    session = Session(
        engines or FakeEngineSet(seed=5), chosen or system(), sampling=SHORT, **options
    )
    for frame in frames(video):
        session.push(frame)
    return session


def question(text=ASK, at=Fraction(0), **options) -> Question:
    return Question(text, at, sampling=SHORT, **options)


def is_idle(session) -> bool:
    """Nothing is held for questions."""
    memory = session.inspect().memory
    return not (
        len(session._questions)
        or memory.tiers.scratch_slots.live
        or memory.tiers.stream_slots._leases
    )


# ---- futures that are given up ----


def test_a_question_that_an_event_loop_no_longer_waits_for_is_forgotten():
    async def wait_briefly(session):
        answer = asyncio.wrap_future(session.submit(question(at=LATER)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer, 0.01)

    with opened() as session:
        asyncio.run(wait_briefly(session))
        assert is_idle(session)
        assert session.ask(ASK).text
        session.finish()


GIVEN_UP = ("cancelled", "cancelled later", "raises", "set by its asker")


def give_up(session, how, conversation=None):
    def fails(piece):
        raise KeyError("mine")

    if how == "raises":
        with pytest.raises(KeyError):
            session.submit(question(conversation=conversation), fails).result(10)
        return
    at = LATER if how == "cancelled later" else Fraction(0)
    answer = session.submit(question(at=at, conversation=conversation))
    if how == "set by its asker":
        try:
            answer.set_result("mine")
        except Exception:  # noqa: BLE001 (it was answered before)
            assert answer.done()
    else:
        answer.cancel()


@settings(max_examples=examples(12))
@given(
    st.lists(st.sampled_from([*GIVEN_UP, "asks", "asks in a"]), max_size=8),
    st.sampled_from([None, "a", "b"]),
    st.booleans(),
)
def test_what_is_given_up_changes_no_other_answer_and_leaves_nothing(steps, conversation, overlap):
    """The answers of those who stay are the same without those who leave, if these are in a
    conversation of their own or in none."""

    def told(steps):
        heard = []
        with opened(chosen=system(**FULL), overlap=overlap) as session:
            for step in steps:
                if step == "asks":
                    heard.append(session.ask(ASK).text)
                elif step == "asks in a":
                    heard.append(session.ask(ASK, conversation="stays").text)
                else:
                    give_up(session, step, conversation)
            session.finish()
            assert is_idle(session)
            heard.append(session.ask(ASK, conversation="stays").text)
            assert session.ask(ASK, conversation=conversation).text
        return heard

    assert told(steps) == told([step for step in steps if step.startswith("asks")])


def test_a_question_that_was_cancelled_before_it_began_is_not_run():
    gate, engines = threading.Event(), FakeEngineSet()
    with opened(engines) as session:
        running = session.submit(question(), lambda piece: gate.wait(10))
        before = len(engines.llm.runs)
        waiting = [session.submit(question(conversation="a")) for _ in range(20)]
        assert all(answer.cancel() for answer in waiting[3:])  # three have other threads
        gate.set()
        assert running.result(10).text
        assert [answer.result(10).text for answer in waiting[:3]]
        session.finish()
        # of four answers and at most two chunks, and not of 21 answers
        assert len(engines.llm.runs) - before <= 4 * (1 + SHORT.max_tokens) + 2


@pytest.mark.parametrize(
    "name", ["vicostream", "simplestream", "livevlm", "rekv", "videollm-online"]
)
def test_an_answer_that_is_no_longer_wanted_ends_at_its_next_token(name):
    first, gate, engines = threading.Event(), threading.Event(), FakeEngineSet()
    runs_at = []

    def on_token(piece):
        first.set()
        gate.wait(10)

    with Session(engines, load_system(name)) as session:
        for frame in frames(8):
            session.push(frame)
        sampling = Sampling(max_tokens=64)
        answer = session.submit(Question(ASK, Fraction(0), sampling=sampling), on_token)
        assert first.wait(10)
        runs_at.append(len(engines.llm.runs))
        assert answer.cancel()
        gate.set()
        session.finish()
        assert len(engines.llm.runs) - runs_at[0] <= 1
        assert session.ask(ASK, sampling=SHORT).text
        assert len(session._questions) == 0
        stays = session.inspect().memory._stream_reader  # has scratch slots of its own
        assert stays or session.inspect().memory.tiers.scratch_slots.live == 0


def test_leaving_a_stream_of_an_answer_early_ends_the_answer():
    async def leave(session):
        stream = session.ask_stream(ASK, sampling=Sampling(max_tokens=500))
        async for _ in stream:
            break
        await stream.aclose()

    engines = FakeEngineSet()
    with opened(engines) as session:
        asyncio.run(leave(session))
        session.finish()
        assert len(engines.llm.runs) < 200


def test_a_cancelled_task_of_an_event_loop_ends_its_answer():
    async def cancelled(session):
        async def listen():
            async for _ in session.ask_stream(ASK, at=LATER):
                pass

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with opened() as session:
        asyncio.run(cancelled(session))
        assert is_idle(session)


def test_failures_leave_nothing_even_without_the_garbage_collector():
    def fails(piece):
        raise KeyError("mine")

    given = []
    gc.disable()
    try:
        with opened(FakeEngineSet(layers=1), max_questions=1) as session:
            for _ in range(100):
                answer = session.submit(question(conversation="a"), fails)
                assert isinstance(answer.exception(10), KeyError)
                given.append(weakref.ref(answer))
            del answer
            session.finish()
            assert is_idle(session)
            assert not [answer for answer in given if answer()]
    finally:
        gc.enable()


def test_finish_raises_what_happened_to_the_stream_and_not_to_an_answer():
    engines = FakeEngineSet()
    with opened(engines) as session:
        give_up(session, "raises")
        give_up(session, "cancelled")
        session.finish()
    engines.vision.function = lambda **bindings: 1 / 0
    with opened(engines) as session, pytest.raises(ZeroDivisionError):
        session.finish()


# ---- callbacks ----


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_an_on_event_that_raises_is_reported_once_and_does_not_end_the_stream(error, caplog):
    def fails(event):
        raise error

    with opened(on_event=fails) as session:
        for frame in frames(24, start=8):
            session.push(frame)
        assert session.ask(ASK).text
        session.finish()
        summary = session.summary()
    assert summary.chunks == 4
    assert summary.event_failures == 5
    assert summary.to_json()["event_failures"] == 5
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert type(error).__name__ in warned[0].getMessage()


def test_an_interrupt_of_the_main_thread_is_passed_on():
    def interrupted(event):
        raise KeyboardInterrupt

    with opened(video=7, overlap=False, on_event=interrupted) as session:
        last = frames(8)[7]
        with pytest.raises(KeyboardInterrupt):
            session.push(last)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_callback_may_ask_without_waiting_and_is_told_that_it_must_not_wait(overlap):
    refused, asked = [], []

    def ask(*_):
        for wait in (
            lambda: session.ask(ASK),
            session.finish,
            lambda: session.push(frames(1)[0]),
            lambda: session.wants(Fraction(9)),
        ):
            try:
                wait()
            except VicortError as error:
                refused.append(str(error))
        if len(asked) < 12:
            asked.append(session.submit(question(), ask))
            asked[-1].add_done_callback(ask)

    session = Session(FakeEngineSet(), system(), overlap=overlap, sampling=SHORT, on_event=ask)
    with session:
        for frame in frames(40):
            session.push(frame)
        session.finish()
        session.finish()  # what was asked meanwhile
        assert all(answer.result(10).text for answer in asked)
    assert len(asked) == 12
    assert len(refused) >= 4 * 12
    assert all("use submit there" in line for line in refused)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("kind", [ChunkEvent, Answer, Spoken])
@pytest.mark.parametrize("set_type", [FakeEngineSet, SimulatedEngineSet])
def test_a_callback_may_close_the_session(kind, set_type, overlap):
    closed = threading.Event()

    def on_event(event):
        if isinstance(event, kind):
            session.close()
            closed.set()

    session = Session(
        set_type(),
        small("videollm-online") if kind is Spoken else system(),
        overlap=overlap,
        sampling=SHORT,
        on_event=on_event,
    )

    def use():
        with pytest.raises(SessionClosed):  # noqa: PT012 (which of them is a matter of time)
            for frame in frames(64):
                session.push(frame)
            session.ask(ASK)
            session.finish()
            session.ask(ASK)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert closed.wait(20)


def test_submit_does_not_wait_for_a_thread_that_moves_the_stream():
    with opened() as session:
        answers = []
        asker = threading.Thread(target=lambda: answers.append(session.submit(question())))
        with session._lock:
            asker.start()
            asker.join(10)
            assert len(answers) == 1
        session.wants(Fraction(99))
        assert answers[0].result(10).text


# ---- a session that is closed, or of another process ----


def uses(session):
    return {
        "ask": lambda: session.ask(ASK),
        "submit": lambda: session.submit(question()),
        "push": lambda: session.push(Frame(frames(1)[0].image, Fraction(99), 99)),
        "wants": lambda: session.wants(Fraction(99)),
        "finish": session.finish,
    }


def test_a_closed_session_says_so():
    session = opened()
    session.close()
    session.close()
    for use in uses(session).values():
        with pytest.raises(SessionClosed, match="closed: open a new one"):
            use()
    assert session.summary().chunks >= 0


def test_every_open_question_fails_when_the_session_is_closed():
    gate = threading.Event()
    session = opened()
    running = session.submit(question(conversation="a"), lambda piece: gate.wait(10))
    waiting = [session.submit(question(conversation="a")) for _ in range(8)]
    waiting += [session.submit(question(at=at)) for at in (LATER, None)]
    threading.Timer(0.2, gate.set).start()
    session.close()
    for answer in [running, *waiting]:
        with pytest.raises(SessionClosed, match="closed before the answer"):
            answer.result(10)


def test_a_forked_child_is_refused_at_once_and_does_not_hurt_its_parent():
    """Also while other threads hold the session's locks."""
    with opened() as session:
        shared = SharedSession(session, SHORT)
        gate = threading.Event()
        answer = session.submit(question(), lambda piece: gate.wait(20))
        with session._lock, session._questions._lock, shared._left:
            child = os.fork()
            if child == 0:
                refused = 0
                signal.alarm(10)
                calls = [*uses(session).values(), *shared_uses(shared)]
                for use in calls:
                    try:
                        use()
                    except VicortError as error:
                        refused += "forked child" in str(error)
                session.close()
                shared.close()
                os._exit(0 if refused == len(calls) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        gate.set()
        assert answer.result(10).text == session.ask(ASK).text


FORKS = """
import os, signal, sys
from vicort.runtime import Session
session = Session.open(sys.argv[1])
child = os.fork()
if not child:
    signal.alarm(20)
    session.close()
    sys.exit(7)
_, status = os.waitpid(child, 0)
answer = session.ask("what is there now?").text
session.close()
print(os.waitstatus_to_exitcode(status), answer)
"""


def test_a_forked_child_of_a_session_with_engines_can_exit(tiny_engines):
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tiny_engines)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.split()[0] == "7"
    assert done.stderr == ""


def shared_uses(shared):
    return (
        lambda: shared.ask(ASK, lambda piece: True),
        lambda: shared.push(10**9, lambda: frames(1)[0].image),
        lambda: shared.push_packet(b"x", 10**9),
        shared.summary,
        shared.finish,
    )


# ---- bounds ----


def test_open_questions_are_bounded_and_cancelled_ones_make_room():
    with opened(max_questions=3) as session:
        waiting = [session.submit(question(at=at)) for at in (LATER, None, LATER)]
        with pytest.raises(QuestionError, match="3 questions wait"):
            session.submit(question())
        waiting[0].cancel()
        assert session.ask(ASK).text
        session.finish()
        assert all(answer.result(10).text for answer in waiting[1:])


@pytest.mark.parametrize(
    "at", [float("nan"), float("inf"), -1, Fraction(-1, 3), "soon", "3", True, 10**400, [], 1j]
)
def test_a_time_that_is_none_is_refused(at):
    with opened() as session:
        with pytest.raises(QuestionError, match="the question's time"):
            session.ask(ASK, at=at)
        assert is_idle(session)


@pytest.mark.parametrize(
    "wrong",
    [
        {"conversation": 5},
        {"conversation": ["x"]},
        {"conversation": "x" * 5000},
        {"id": "i" * 5000},
    ],
)
def test_a_name_that_is_none_is_refused(wrong):
    with opened() as session, pytest.raises(QuestionError, match="at most 1000"):
        session.submit(Question(ASK, Fraction(0), sampling=SHORT, **wrong))


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "x", True])
def test_a_seed_that_is_none_is_refused(seed):
    with opened() as session, pytest.raises(ConfigError, match="seed"):
        session.ask(ASK, sampling=Sampling(seed=seed))


@pytest.mark.parametrize(
    "image",
    [
        None,
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_a_picture_that_is_none_is_refused_and_the_stream_goes_on(image):
    with opened(video=7) as session:
        with pytest.raises(ConfigError, match="picture"):
            session.push(Frame(image, Fraction(7, 2), 7))
        session.push(frames(8)[7])
        assert session.ask(ASK).text


@pytest.mark.parametrize(
    "at", [float("nan"), float("inf"), None, "x", "3", True, 10**400, Fraction(10**400)]
)
def test_a_time_of_a_frame_that_is_none_is_refused(at):
    with opened() as session:
        with pytest.raises(ConfigError, match="frame at"):
            session.push(Frame(frames(1)[0].image, at, 8))
        with pytest.raises(ConfigError, match="frame at"):
            session.wants(at)
        assert session.ask(ASK).text


@pytest.mark.parametrize(
    "wrong",
    [
        *({"fps": fps} for fps in ("x", "2", True, 0, -1, 1e-320, 10**400, float("nan"), [])),
        *({"threads": threads} for threads in ("x", True, 1.0, 0, 10**400)),
        *({"max_questions": most} for most in ("x", True, 0, 2.5)),
        *({"on_lag": name} for name in ("x", None, [])),
        {"system_prompt": 5},
    ],
    ids=lambda wrong: f"{str(wrong)[:40]}",
)
def test_an_option_of_a_session_that_is_none_is_refused_in_one_line(wrong):
    with pytest.raises(ConfigError) as caught:
        opened(**wrong)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("most", [True, 0, 1.5, "x"])
def test_a_number_of_tokens_that_is_none_is_refused(most):
    with opened() as session, pytest.raises(ConfigError, match="max_tokens"):
        session.ask(ASK, sampling=Sampling(max_tokens=most))


@pytest.mark.parametrize("megabytes", ["x", True, -1, float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize("name", ["device_mb", "host_mb"])
def test_a_budget_that_is_none_is_refused(name, megabytes):
    with pytest.raises(ConfigError, match=f"^{name} "):
        MemoryRequest(**{name: megabytes})


@pytest.mark.parametrize("at", [2, 2.0, np.float32(2), np.int64(2), Decimal(2), Fraction(2)])
def test_a_time_is_any_number(at):
    with opened(video=8) as session:
        assert session.ask(ASK, at=at).at == Fraction(7, 2)


# ---- conversations ----


def test_names_of_conversations_take_no_memory():
    """Each of them has a turn until others take its place."""
    with opened(FakeEngineSet(layers=1)) as session:
        kept = session._answerer.conversations
        slots = session.inspect().memory.tiers.conversation_slots
        for i in range(90):
            session.ask(ASK, conversation=f"name {i}")
        assert len(kept) * len(kept.turns(question(conversation="name 89"))[0].slots) <= slots.count
        assert kept.turns(question(conversation="name 89"))
        assert not kept.turns(question(conversation="name 0"))


def test_the_conversation_that_was_used_least_recently_is_forgotten_first():
    with opened(FakeEngineSet(layers=1)) as session:
        kept = session._answerer.conversations
        for i in range(90):
            session.ask(ASK, conversation="busy" if i % 10 == 0 else f"name {i}")
        assert kept.turns(question(conversation="busy"))


def test_a_conversation_that_rests_too_long_is_forgotten(monkeypatch):
    monkeypatch.setattr(conversations, "FORGOTTEN_AFTER", 10)
    with opened() as session:
        slots = session.inspect().memory.tiers.conversation_slots
        session.ask(ASK, conversation="rests")
        session.ask(ASK, conversation="goes on")
        for i, frame in enumerate(frames(40, start=8)):
            session.push(frame)
            if i == 15:
                session.ask(ASK, conversation="goes on")
        session.ask(ASK, conversation="new")
        kept = session._answerer.conversations
        counts = [
            len(kept.turns(question(conversation=name))) for name in ("rests", "goes on", "new")
        ]
        assert counts[0] == 0
        assert counts[2] == 1
        assert slots.live > 0
        assert len(kept) == sum(map(bool, counts))


def watched_positions(engines) -> list[int]:
    """Largest position of each run of the language graph."""
    largest, read = [], engines.llm.function

    def watched(**bindings):
        largest.append(max(int(bindings["pos"].max()), int(bindings["where"].max())))
        return read(**bindings)

    engines.llm.function = watched
    return largest


def talked(name, gaps, max_position, turns, tokens) -> tuple[int, int]:
    """The largest position, and how many questions were refused, after turns of two conversations
    between chunks whose frames come gap/8 seconds apart; gap 0: no frames."""
    engines = FakeEngineSet(layers=1, max_position=max_position)
    largest, at, number, refused = watched_positions(engines), Fraction(0), 0, 0
    image = frames(1)[0].image
    with Session(engines, load_system(name), overlap=False) as session:
        for gap in gaps:
            for _ in range(8 if gap else 0):
                with suppress(MemoryBudgetError):  # of a system that evicts nothing
                    session.push(Frame(image, at, number))
                at, number = at + Fraction(gap, 8), number + 1
            for turn in range(turns):
                sampling = Sampling(max_tokens=tokens)
                try:
                    session.ask(ASK, conversation="ab"[turn % 2], sampling=sampling)
                except QuestionError:  # no room for its text behind the video
                    refused += 1
                except MemoryBudgetError:  # the stream has ended in a system that evicts nothing
                    assert name == "full-history"
    return max(largest), refused


SYSTEMS_THAT_PLACE_TEXT = [
    "distinct",
    "simplestream",
    "livevlm",
    "rekv",
    "videollm-online",
    "full-history",
]


@pytest.mark.parametrize("name", SYSTEMS_THAT_PLACE_TEXT)
def test_no_position_leaves_the_trained_range(name):
    largest, refused = talked(name, [0, 30, 0, 1000], max_position=160, turns=6, tokens=16)
    assert largest < 160
    assert refused == 0


@pytest.mark.slow
@settings(max_examples=examples(120))
@given(
    st.sampled_from(SYSTEMS_THAT_PLACE_TEXT),
    st.lists(st.sampled_from([0, 0, 0, 4, 30, 1000]), min_size=2, max_size=6),
    st.integers(150, 400),
    st.integers(4, 20),
    st.sampled_from([1, 8, 32]),
)
def test_no_position_leaves_the_trained_range_whatever_comes(
    name, gaps, max_position, turns, tokens
):
    largest, _ = talked(name, gaps, max_position, turns, tokens)
    assert largest < max_position


def test_a_conversation_on_a_stream_that_stands_still_goes_on_for_ever():
    """It forgets its oldest turns, and the later ones follow the video without a gap."""
    engines = FakeEngineSet(layers=1, max_position=512)
    largest = watched_positions(engines)
    with opened(engines, overlap=False) as session:
        kept = session._answerer.conversations
        for _ in range(70):
            assert session.ask(ASK, conversation="a").tokens == 5
        turns = kept.turns(question(conversation="a"))
        assert 5 <= len(turns) < 70
        pool = session.inspect().memory.pool
        places = [pool.host_positions[list(turn.slots)].max() for turn in turns]
        assert places == sorted(places)
        assert len(set(places)) == len(places)
    assert max(largest) < 512
