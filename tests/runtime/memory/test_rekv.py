"""ReKV on streams: against its rule stated layer by layer, against its sequential twin, and whether
the embedded model finds what is long gone."""

from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.plain_rekv import PlainReKV
from support.streams import frames

from vicort.export.tiny.evaluation_files import HELD_OUT
from vicort.export.tiny.model import SIDE
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.world import make_stream
from vicort.runtime.core import Answer, Frame, Question, Sampling
from vicort.runtime.memory.long_term.frame_view import FrameView
from vicort.runtime.policies.system import load_system, parse_system
from vicort.runtime.session import Session

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"


def rekv(parameters="top: 5", window=1, host_mb=0.5, device_mb=4):
    return parse_system(
        f"""
        name: test
        drop: {{policy: none}}
        ingest: {{policy: recent-chunks, chunks: {window}}}
        long_term: {{policy: frame-recall, {parameters}}}
        memory: {{device_mb: {device_mb}, host_mb: {host_mb}, when_full: drop-oldest}}
        """,
        "test.yaml",
    )


def record_choices(monkeypatch):
    """A list to which the units of every choice are added, [L][n]."""
    choices, choose = [], FrameView.choose

    def recorded(view, q):
        selection = choose(view, q)
        choices.append(selection.units.tolist())
        return selection

    monkeypatch.setattr(FrameView, "choose", recorded)
    return choices


@pytest.mark.parametrize("positions", ["consecutive", "kept"])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_question_reads_what_the_plain_statement_reads(passes, positions, monkeypatch):
    """With as many passes as layers, what each layer chooses with what those below have chosen."""
    engines, video = FakeEngineSet(seed=5), frames(72)
    choices = record_choices(monkeypatch)
    system = rekv(f"top: 5, passes: {passes}, positions: {positions}")
    with Session(engines, system, sampling=SHORT) as session:
        prompt = session.inspect().prompt
        plain = PlainReKV(engines, prompt.prefix, 1, 5, positions == "consecutive")
        words = prompt.words(ASK)
        for start in range(0, len(video), 8):
            for frame in video[start : start + 8]:
                session.push(frame)
            plain.watch(video[start : start + 8])
            if start not in (0, 24, 64):
                continue
            choices.clear()
            answer = session.ask(ASK)
            choice = plain.choose(words, plain.text_start, passes)
            if passes >= engines.model.layers:
                assert choice == plain.choose(words, plain.text_start)
            assert choices[-1] == choice
            assert answer.text == prompt.decode(plain.ask(prompt.question(ASK), choice, 5))
            assert answer.tokens_read == 5 * 4 if start else 4 * 4
    assert choice[0] != choice[1]  # layers differ


def test_passes_end_where_the_choice_stays_the_same():
    runs = {}
    for passes in (1, 2, 9):
        engines = FakeEngineSet(seed=5)
        system = rekv(f"top: 5, passes: {passes}")
        with Session(engines, system, overlap=False, sampling=SHORT) as session:
            for frame in frames(40):
                session.push(frame)
            before = len(engines.llm.runs)
            session.ask(ASK)
            runs[passes] = len(engines.llm.runs) - before
    # the question and the five tokens of its answer; and passes, of which the third finds what the
    # second found, since the toy model has two layers
    assert runs == {1: 6 + 1, 2: 6 + 2, 9: 6 + 3}


def read(system, count=72):
    with Session(FakeEngineSet(seed=5), system, sampling=SHORT) as session:
        for frame in frames(count):
            session.push(frame)
        return session.ask(ASK)


def test_the_recent_window_is_read_whole_only_where_the_system_says_so():
    alone, beside = read(rekv("top: 1")), read(rekv("top: 1, window: true"))
    assert alone.tokens_read == 4  # one unit in each layer
    assert beside.tokens_read == 4 + 4 * 4  # and the four units of the last chunk
    assert beside.read[-1][1] == beside.seen_until
    everything = read(rekv("top: 64"))
    assert everything.tokens_read == 36 * 4
    assert everything.read == ((0, Fraction(71, 2)),)


def test_the_first_question_of_all_reads_what_there_is():
    assert read(rekv(), 0).tokens_read == 0
    assert read(rekv(), 1).tokens_read == 4  # half a unit, completed for it
    answer = read(rekv("top: 64"), 11)
    assert answer.tokens_read == 6 * 4
    assert answer.seen_until == 5


def watch(engines, system, video, questions, **options):
    events = []
    with Session(
        engines, system, on_event=events.append, sampling=SHORT, fps="source", **options
    ) as session:
        for at in questions:
            session.submit(Question(ASK, at, str(at), sampling=SHORT))
        for frame in video:
            session.push(frame)
        session.finish()
        memory = session.inspect().memory.long_term
        pages = memory.pages.slot(np.arange(memory.pages.first, memory.pages.last))
        contents = memory.pool.data[pages].tobytes(), memory.pool.cell_positions[pages].tobytes()
        state = (
            contents,
            memory.digests[
                :, memory.units.slot(np.arange(memory.first, memory.units.last))
            ].tobytes(),
            session.summary().pages,
        )
    answers = {
        e.id: (e.text, e.seen_until, e.read, e.pages, e.tokens, e.tokens_read)
        for e in events
        if isinstance(e, Answer)
    }
    return answers, state


@pytest.mark.parametrize("parameters", ["top: 5", "top: 5, window: true, passes: 2"])
def test_overlapped_and_sequential_agree_to_the_last_bit(parameters):
    times = (0, 9, Fraction(85, 4), Fraction(85, 4), 30, None)
    overlapped, sequential = (
        watch(
            FakeEngineSet(seed=6),
            rekv(parameters, host_mb=0.12),
            frames(122),
            times,
            overlap=overlap,
        )
        for overlap in (True, False)
    )
    assert overlapped == sequential
    assert overlapped[1][2]["host"] < 57  # old units were evicted


def test_positions_stay_in_the_trained_range_however_long_the_stream():
    engines = FakeEngineSet(max_position=200, layers=1)
    largest, picture, run = [], frames(1)[0], engines.llm.function

    def watched(**bindings):
        table = bindings["table"]
        places = bindings["where"][np.maximum(table, 0), [[[0]]], np.arange(2)[:, None]]
        largest.append(max(bindings["pos"].max(), places[table >= 0].max(initial=-1)))
        return run(**bindings)

    engines.llm.function = watched
    with Session(engines, rekv(host_mb=0.1), overlap=False) as session:
        memory = session.inspect().memory.long_term
        for i in range(3000):
            session.push(Frame(picture.image, Fraction(i, 2), i))
            if i % 500 == 499:
                session.ask(ASK, sampling=SHORT)
        assert memory.units.last - memory.units.first == memory.units.count
        assert memory.units.last > 10 * memory.units.slots
    assert 100 < max(largest) < 200


@pytest.mark.parametrize("seed", [1, 2])
def test_the_embedded_model_finds_what_was_long_ago_in_few_units(tiny_engines, seed):
    """Seven things, then a minute of nothing, and a question reads 16 of some 85 units."""
    stream = make_stream(HELD_OUT + seed, 7, tail=64)
    painter, end = Painter(stream, SIDE, SIDE), int(stream.things[-1].end) + 64
    system = load_system("rekv").with_(ingest={"chunks": 1}, long_term={"top": 16})
    with Session.open(tiny_engines, system) as session:
        for number in range(2 * end):
            session.push(Frame(painter.frame(number / 2), Fraction(number, 2), number))
        for thing in stream.things:
            answer = session.ask(f"what color was the {thing.shape}?", sampling=SHORT)
            assert answer.text == thing.color
            waiting = 2 * end % 16 // 2  # units of the chunk that is being filled
            assert answer.tokens_read == (16 + waiting) * 16


def test_the_system_file_says_what_the_paper_and_the_public_code_say():
    system = load_system("rekv")
    policy = system.long_term
    assert (policy.top, policy.positions, policy.window) == (64, "consecutive", False)
    assert system.drop.policy == "none"
    # 15,000 tokens of local window in frames of 196
    assert abs(system.ingest.window * 8 - 15_000 / 196) < 8
