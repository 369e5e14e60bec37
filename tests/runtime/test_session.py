"""The whole runtime on a toy model in NumPy: order, freshness, memory, conversations, and the twin
that must agree."""

import gc
import itertools
import json
import shutil
import threading
import weakref
from fractions import Fraction
from functools import partial
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import videos
from support.fake_engines import FakeEngineSet, rotate
from support.sizes import examples
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime.core import Answer, ChunkEvent, Frame, Question, Sampling
from vicort.runtime.errors import ConfigError, MemoryBudgetError, QuestionError, VicortError
from vicort.runtime.memory.slots import Slots
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.sources.source import Ending, Wanted

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"


def run(video, questions=(), chosen=None, engines=None, **options):
    """Events of a whole stream, in order, and its session's summary."""
    events = []
    engines = engines or FakeEngineSet()
    with Session(
        engines, chosen or system(), on_event=events.append, sampling=SHORT, **options
    ) as session:
        for question in questions:
            session.submit(question)
        session.finish(feed(session, video))
        return events, session.summary()


def feed(session, video):
    """Push what is wanted; returns how the video ends."""
    wanted, before = True, None
    for frame in video:
        wanted = session.wants(frame.time)
        if wanted == Wanted.BOTH:
            session.push(before)
        if wanted:
            session.push(frame)
        before = frame
    return None if wanted else Ending(before, before.time)


def answers(events):
    return [event for event in events if isinstance(event, Answer)]


def chunks(events):
    return [event for event in events if isinstance(event, ChunkEvent)]


def question(at, text=ASK, **options):
    return Question(text, None if at is None else Fraction(at), sampling=SHORT, **options)


class Transcript:
    """The same model in one pass over everything, without pages, chunks or a cache: the plain
    statement of `full-history`.

    Text that is asked, and what is answered, is seen by later text; video sees the prompt and
    earlier video alone.
    """

    def __init__(self, engines, prompt):
        self.engines, self.model = engines, engines.model
        self.rows = [
            (engines.embedding[token], (i, i, i), "prompt") for i, token in enumerate(prompt)
        ]
        self.first, self.origin = len(prompt), None

    def watch(self, video):
        m = self.model
        visual = self.engines.see(np.stack([frame.image for frame in video])).reshape(-1, m.width)
        shape = m.grid(*video[0].image.shape[:2])
        grid = itertools.product(range(len(video) // 2), range(shape.rows), range(shape.columns))
        self.origin = video[0].time if self.origin is None else self.origin
        for row, (unit, h, w) in zip(visual, grid, strict=True):
            t = int((video[2 * unit].time - self.origin) * Fraction(m.tokens_per_second))
            self.rows.append((row, (self.first + t, self.first + h, self.first + w), "vision"))

    def ask(self, suffix, count):
        """Greedy tokens of an answer; it and the question stay."""
        tokens = []
        for token in suffix:
            self._say(token)
        for _ in range(count):
            tokens.append(self._next())
            self._say(tokens[-1])
        return tokens

    def _say(self, token):
        position = max((max(place) for _, place, _ in self.rows), default=-1) + 1
        self.rows.append((self.engines.embedding[token], (position,) * 3, "text"))

    def _next(self):
        m = self.model
        x = np.array([row for row, _, _ in self.rows], np.float64)
        places = np.array([place for _, place, _ in self.rows])
        kinds = np.array([kind for _, _, kind in self.rows])
        hidden = ~np.tri(len(x), dtype=bool) | (
            (kinds == "vision")[:, None] & (kinds == "text")[None]
        )
        for weights in self.engines._layers:
            q, k, v = (
                (x @ weights[name]).reshape(len(x), heads, m.head_dim)
                for name, heads in (("q", m.query_heads), ("k", m.kv_heads), ("v", m.kv_heads))
            )
            q, k = (rotate(t, np.array(places)[:, None]) for t in (q, k))
            k, v = (np.repeat(t, m.query_heads // m.kv_heads, axis=1) for t in (k, v))
            scores = np.einsum("chd,jhd->hcj", q, k) / m.head_dim**0.5
            scores[:, hidden] = -np.inf
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("hcj,jhd->chd", weight / weight.sum(-1, keepdims=True), v)
            x = x + mixed.reshape(len(x), -1) @ weights["o"]
        return int(np.argmax(x[-1] @ self.engines.embedding.T))


@pytest.mark.parametrize("overlap", [True, False])
def test_full_history_in_chunks_equals_one_pass_over_everything(overlap):
    engines, video = FakeEngineSet(seed=3), frames(22)
    events, _ = run(video, [question(4), question(None)], system(**FULL), engines, overlap=overlap)
    with Session(engines, system(**FULL)) as session:
        prompt = session.inspect().prompt
    # two answers that overlap may end in either order
    in_order = sorted(answers(events), key=lambda answer: answer.at)
    asked_at_4 = [*video[:8], video[8], video[8]]  # half a unit, completed by its repeat
    for answer, seen in zip(in_order, (asked_at_4, video), strict=True):
        plain = Transcript(engines, prompt.prefix)
        plain.watch(seen)
        assert answer.text == prompt.decode(plain.ask(prompt.question(ASK), 5))
        assert answer.seen_until == seen[-1].time


SYSTEMS = {
    "full": system(**FULL),
    "dropping": system(drop="{policy: chunk-intra, threshold: 0.2}"),
    "ratio": system(drop="{policy: chunk-intra, keep: 0.5}"),
    "spilling": system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}"),
    "even": system(
        retrieval="{policy: even-units, units: 3}",
        memory="{device_mb: 0.92, when_full: thin-evenly}",
    ),
    "latest": system(ingest="{policy: latest-units, units: 2}", retrieval="{policy: all}"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_overlapped_pipeline_and_its_sequential_twin_agree_to_the_last_bit(name):
    def asked_once(overlap):
        questions = [question(at, id=str(at)) for at in (0, 3, "7.25", 11, None)]
        events, summary = run(frames(61), questions, SYSTEMS[name], overlap=overlap)
        said = {a.id: (a.text, a.seen_until, a.read, a.pages, a.tokens) for a in answers(events)}
        placed = [(c.index, c.frames, c.start, c.end, c.tokens, c.kept) for c in chunks(events)]
        return said, placed, summary.pages, summary.frames

    assert asked_once(True) == asked_once(False)


# ---- freshness ----


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


def test_one_frame_is_a_stream():
    events, summary = run(frames(1), [question(None)])
    assert (summary.frames, summary.chunks) == (1, 1)
    assert answers(events)[0].pages > 0


def test_no_frames_at_all_still_answers():
    events, summary = run([], [question(None)])
    assert (summary.frames, summary.fps, answers(events)[0].read) == (0, 0, ())


def test_questions_come_back_in_time_order_whatever_order_they_were_given_in():
    events, _ = run(frames(30), [question(at, id=str(at)) for at in (9, 2, 6)], overlap=False)
    assert [a.id for a in answers(events)] == ["2", "6", "9"]


# ---- the six defects of the public ViCoStream code (SEEDS 1.11) ----


def test_defect_1_stages_of_different_chunks_run_at_the_same_time():
    spans = []

    class Trace:
        def span(self, track, name, start_ns, end_ns, **args):
            spans.append((name, start_ns, end_ns, args))

    engines, second_chunk, reading = FakeEngineSet(), threading.Event(), threading.Event()
    see, read = engines.vision.function, engines.llm.function

    def seen(**bindings):
        if len(engines.vision.runs) > 1:
            second_chunk.set()
            reading.wait(timeout=10)  # however busy the machine is
        return see(**bindings)

    def read_slowly(**bindings):
        if engines.vision.runs:  # not the prompt
            reading.set()
            second_chunk.wait(timeout=10)
        return read(**bindings)

    engines.vision.function, engines.llm.function = seen, read_slowly
    run(frames(80), engines=engines, trace=Trace())
    by_stage = {stage: [s for s in spans if s[0] == stage] for stage in ("vision", "prefill")}
    together = [
        (v[3]["chunk"], p[3]["chunk"])
        for v in by_stage["vision"]
        for p in by_stage["prefill"]
        if v[1] < p[2] and p[1] < v[2]
    ]
    assert together
    assert all(vision > prefill for vision, prefill in together)


def test_defect_2_chunks_are_done_before_the_stream_has_ended_and_questions_rebuild_nothing():
    engines, placed = FakeEngineSet(), threading.Event()
    with Session(engines, system(), on_event=lambda event: placed.set()) as session:
        for frame in frames(8):
            session.push(frame)
        assert placed.wait(timeout=10)  # the stream goes on, its first chunk is through
        runs = len(engines.vision.runs)
        for _ in range(3):
            session.ask(ASK, sampling=SHORT)
        assert len(engines.vision.runs) == runs


@pytest.mark.parametrize("name", ["spilling", "even", "latest", "dropping"])
def test_defect_3_memory_stays_within_its_budget_however_long_the_stream(name):
    pages, picture = [], frames(1)[0]
    with Session(
        FakeEngineSet(),
        SYSTEMS[name],
        overlap=False,
        on_event=lambda e: pages.append(session.summary().pages),
    ) as session:
        for i in range(1200):
            session.push(type(picture)(picture.image, Fraction(i, 2), i))
        late = pages[-20:]
        assert late == [late[0]] * 20
        memory = session.inspect().memory
        budget = SYSTEMS[name].budget
        assert memory.pool.data.nbytes + memory.pool.cell_positions.nbytes <= budget.device_mb * 1e6
        assert (
            memory.tiers.host_pool.data.nbytes + memory.tiers.host_pool.cell_positions.nbytes
            <= budget.host_mb * 1e6
        )


def test_defect_4_after_two_thousand_chunks_retrieval_still_finds_the_chunk_it_means():
    """One chunk shows a picture of its own; a question whose embedding points there reads just that
    stretch of time."""
    engines = FakeEngineSet(chunk_frames=2, layers=1)
    dull, bright = frames(1)[0].image * 0, frames(1)[0].image * 0 + 255
    marked = 1900
    chosen = system(
        retrieval="{policy: similar-chunks, top: 1}",
        memory="{device_mb: 8, when_full: drop-oldest}",
    )
    with Session(engines, chosen, overlap=False, fps="source") as session:
        prompt = session.inspect().prompt
        target = engines.vision.function(frames=np.stack([bright, bright]))["features"][0].mean(
            axis=0
        )
        engines.embedding[prompt.words(ASK)] = target
        for i in range(2 * 2100):
            image = bright if i // 2 == marked else dull
            session.push(frames(1)[0].__class__(image, Fraction(i, 2), i))
        answer = session.ask(ASK, sampling=SHORT)
    assert answer.read == ((Fraction(marked), Fraction(2 * marked + 1, 2)),)


def test_defect_5_answering_does_not_narrow_what_the_next_chunk_attends_to():
    def tables(ask):
        engines = FakeEngineSet()
        with Session(engines, system(), overlap=False, sampling=Sampling(max_tokens=30)) as session:
            for i, frame in enumerate(frames(64)):
                session.push(frame)
                if ask and i == 40 - 1:
                    session.ask(ASK)
            prefills = [run for run in engines.llm.runs if run["features"][0] >= 16]
            return session.inspect().memory.ingest_table().pages, prefills[-1]["table"]

    asked, quiet = tables(True), tables(False)
    assert [p.unit for p in asked[0]] == [p.unit for p in quiet[0]]
    assert asked[1] == quiet[1]


def test_defect_6_a_full_pipeline_waits_or_drops_the_oldest_and_counts_it():
    gate = threading.Event()
    engines = FakeEngineSet()
    see = engines.vision.function

    def blocked(**bindings):
        gate.wait(timeout=30)
        return see(**bindings)

    engines.vision.function = blocked
    with Session(engines, system(), on_lag="drop-oldest") as session:
        for frame in frames(160):
            session.push(frame)  # never waits
        gate.set()
        session.finish()
        summary = session.summary()
    assert summary.dropped > 0
    assert summary.frames == 160
    assert summary.chunks * 8 == 160 - summary.dropped
    _, patient = run(frames(160))
    assert (patient.dropped, patient.chunks) == (0, 20)


# ---- conversations, several questions, tokens ----


def test_a_conversation_sees_its_earlier_turns_and_others_do_not():
    def second(first, conversation):
        with Session(FakeEngineSet(seed=5), system(**FULL), overlap=False) as session:
            for frame in frames(16):
                session.push(frame)
            session.ask(first, conversation="a", sampling=SHORT)
            return session.ask(
                "what shape was green?", conversation=conversation, sampling=Sampling(max_tokens=20)
            ).text

    assert second("what color was the circle?", "a") != second("what came after the star?", "a")
    assert second("what color was the circle?", None) == second("what came after the star?", None)
    assert second("what color was the circle?", "b") == second("what came after the star?", None)


def test_a_conversation_goes_on_behind_its_earlier_turns_and_all_video():
    engines, video, second = FakeEngineSet(seed=11), frames(60), "what came after the star?"
    with Session(engines, system(**FULL), sampling=SHORT) as session:
        prompt, plain = session.inspect().prompt, None
        kept = session._answerer.conversations
        earlier_turns = partial(kept.turns, Question("", conversation="a"))
        plain = Transcript(engines, prompt.prefix)
        for part, text, earlier in (
            (video[:8], ASK, False),
            (video[8:], second, True),
            ([], ASK, True),
        ):
            for frame in part:
                session.push(frame)
            if part:
                plain.watch(part)
            turns = [(turn.question, turn.text) for turn in earlier_turns()] if earlier else []
            expected = plain.ask(prompt.question(text, turns), 5)
            assert session.ask(text, conversation="a").text == prompt.decode(expected)


def test_questions_leave_nothing_behind():
    with Session(FakeEngineSet(), system(**FULL)) as session:
        for frame in frames(16):
            session.push(frame)
        first = session.ask(ASK, sampling=SHORT)
        pages = session.summary().pages
        again = [session.submit(question(0)) for _ in range(12)]
        assert {answer.result().text for answer in again} == {first.text}
        assert session.summary().pages == pages


def test_a_long_conversation_stays_within_its_pages():
    with Session(FakeEngineSet(layers=1), system(**FULL), overlap=False) as session:
        session.inspect().memory.tiers.conversation_slots = Slots(
            session.inspect().memory.tiers.conversation_slots.all.start, 20
        )
        session.push(frames(1)[0])
        for i in range(12):
            session.ask(ASK, conversation=str(i % 3), sampling=Sampling(max_tokens=12))
        slots = session.inspect().memory.tiers.conversation_slots
        assert slots.count - 6 < slots.live <= slots.count


def test_answers_stream_and_the_pieces_make_the_text():
    pieces = []
    with Session(FakeEngineSet(), system()) as session:
        for frame in frames(8):
            session.push(frame)
        answer = session.ask(ASK, sampling=Sampling(max_tokens=12), on_token=pieces.append)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1
    assert answer.tokens == 12
    assert answer.ttft_ms > 0


def test_sampling_is_seeded():
    def say(seed):
        with Session(FakeEngineSet(), system(), overlap=False) as session:
            session.push(frames(1)[0])
            return session.ask(
                ASK, sampling=Sampling(temperature=3.0, seed=seed, max_tokens=30)
            ).text

    assert say(1) == say(1)
    assert say(1) != say(2)


def asked_once(engines=None, sampling=SHORT, **options):
    """The answer, and the pieces in which it came, after one chunk."""
    pieces = []
    with Session(engines or FakeEngineSet(), system(), overlap=False, **options) as session:
        for frame in frames(8):
            session.push(frame)
        answer = session.ask(ASK, sampling=sampling, on_token=pieces.append)
    return answer, pieces


@pytest.mark.parametrize("length", [1, 3])
def test_an_answer_ends_before_a_stop_text_which_is_never_streamed(length):
    whole, _ = asked_once(sampling=Sampling(max_tokens=12))
    middle = len(whole.text) // 2
    word = whole.text[middle : middle + length]
    answer, pieces = asked_once(sampling=Sampling(max_tokens=12, stop=("never said", word)))
    assert answer.text == "".join(pieces) == whole.text[: whole.text.index(word)]
    assert answer.tokens < whole.tokens


def test_an_answer_that_begins_with_a_stop_text_is_no_turn_of_its_conversation():
    with Session(FakeEngineSet(), system(), overlap=False) as session:
        session.push(frames(1)[0])
        word = session.ask(ASK, sampling=SHORT).text[:1]
        stop = Sampling(max_tokens=12, stop=(word,))
        assert session.ask(ASK, conversation="a", sampling=stop).text == ""
        assert session.ask(ASK, conversation="a", sampling=SHORT).tokens == 5


def test_the_models_own_sampling_is_taken_where_the_question_says_nothing(tmp_path):
    folder = shutil.copytree(FakeEngineSet().folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 3.0, "repetition_penalty": 1.3})
    )

    def say(**options):
        engines = FakeEngineSet()
        engines.folder = folder
        return asked_once(engines, Sampling(max_tokens=30, **options))[0].text

    plain = asked_once(sampling=Sampling(max_tokens=30))[0].text
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0}
    assert say(**greedy) == plain
    assert say(seed=1) != say(seed=2)
    assert say() == say(temperature=3.0, top_k=50, top_p=1.0, repetition_penalty=1.3)
    assert say(temperature=0.0) != plain  # the penalty is left


def test_the_penalty_counts_the_words_of_the_question():
    """So large a penalty leaves none of them in an answer that says each word once."""
    question = "what color was the circle there now objects last a up left which came first"
    with Session(FakeEngineSet(), system(), overlap=False) as session:
        for frame in frames(8):
            session.push(frame)
        penalised = Sampling(max_tokens=30, repetition_penalty=1000)
        said = session.ask(question, sampling=penalised).text.split()
    assert len(set(said)) == len(said) > 5
    assert not set(said) & set(question.split())


def test_a_system_prompt_comes_first_and_is_counted():
    said = "what color was the circle there now"
    long = Sampling(max_tokens=30)
    plain, changed = (asked_once(sampling=long, system_prompt=text)[0] for text in (None, said))
    assert changed.text != plain.text
    with Session(FakeEngineSet(), system(), overlap=False, system_prompt=said) as session:
        assert len(session.inspect().prompt.prefix) > len(said.split())


def test_a_system_prompt_that_is_too_long_is_refused_with_its_length():
    with pytest.raises(
        ConfigError, match=r"a prompt of \d+ tokens, these engines take 32: shorten"
    ):
        asked_once(system_prompt="circle " * 40)


def test_many_threads_ask_while_frames_go_on():
    engines, texts, stop = FakeEngineSet(), [], threading.Event()
    with Session(
        engines, system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}")
    ) as session:
        session.push(frames(1)[0])

        def pester():
            while not stop.is_set():
                texts.append(session.ask(ASK, sampling=SHORT).text)

        threads = [threading.Thread(target=pester) for _ in range(6)]
        for thread in threads:
            thread.start()
        for frame in frames(400)[1:]:
            session.push(frame)
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
        session.finish()
        assert session.summary().frames == 400
    assert len(texts) > 6


# ---- int8 pages ----


def test_long_term_memory_over_int8_pages_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^system livevlm has .* built without --kv int8$"):
        Session(FakeEngineSet(kv="int8"), load_system("livevlm"))


def test_int8_pages_change_little_and_something():
    """What a question reads is near what it reads from pages of floats."""
    first = []
    for kv in ("float", "int8"):
        engines, logits = FakeEngineSet(kv=kv), []
        with Session(engines, system(), overlap=False, sampling=Sampling(max_tokens=1)) as session:
            for frame in frames(40):
                session.push(frame)
            choose = engines.head.function
            engines.head.function = partial(_kept, logits, choose)
            session.ask(ASK)
        first.append(logits[0])
    exact, rounded = first
    off = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < off < 0.05


def _kept(kept, read, /, **run):
    outputs = read(**run)
    kept.append(outputs["logits"])
    return outputs


# ---- positions and bounds ----


def test_positions_stay_in_the_trained_range_however_long_the_stream():
    engines = FakeEngineSet(max_position=200, layers=1)
    largest = []
    read = engines.llm.function

    def watched(**bindings):
        largest.append(
            max(
                bindings["pos"].max(),
                bindings["where"][bindings["table"][bindings["table"] >= 0]].max(initial=-1),
            )
        )
        return read(**bindings)

    engines.llm.function = watched
    picture = frames(1)[0]
    with Session(engines, system(), overlap=False) as session:
        for i in range(3000):
            session.push(type(picture)(picture.image, Fraction(i, 2), i))
            if i % 500 == 499:
                session.ask(ASK, sampling=SHORT)
    assert 100 < max(largest) < 200


# frames before the silence, which cuts the first or the second chunk in the middle
@pytest.mark.parametrize("before", [4, 12])
def test_a_silence_longer_than_the_trained_range_loses_no_token_and_leaves_no_position_outside(
    before,
):
    engines = FakeEngineSet(max_position=200, layers=1)
    real, largest, read = [], [], engines.llm.function

    def watched(**bindings):
        real.append(int((bindings["pos"][:, 0] >= 0).sum()))
        largest.append(int(bindings["pos"].max()))
        return read(**bindings)

    engines.llm.function = watched
    picture, kept = frames(1)[0], []
    times = [*range(before), *range(9000, 9004)]  # seconds
    with Session(
        engines, system(), fps=1, overlap=False, on_event=lambda event: kept.append(event.kept)
    ) as session:
        real.clear()  # the prompt
        for i, at in enumerate(times):
            session.push(type(picture)(picture.image, Fraction(at), i))
    assert real == kept == [16] * (len(times) // 8)
    assert max(largest) < 200


def test_after_rebasing_cached_time_agrees_with_time_to_come():
    picture = frames(1)[0]
    chosen = system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}")
    with Session(FakeEngineSet(max_position=200, layers=1), chosen, overlap=False) as session:
        for i in range(3000):
            session.push(type(picture)(picture.image, Fraction(i, 2), i))
        memory, timeline = session.inspect().memory, session.inspect().memory.timeline
        assert timeline.offset > 1000
        assert memory.tiers.host_slots.live
        for unit in memory.tiers.units:
            assert memory.tiers.first_position(unit).tolist() == [
                max(timeline.first, timeline.step(memory.tiers.locations(unit)[0].page.start)),
                2,
                2,
            ]


def test_a_page_recalled_from_the_host_reads_like_one_that_never_left():
    def asked_once(memory):
        engines = FakeEngineSet(seed=6)
        chosen = system(retrieval="{policy: similar-chunks, top: 4}", memory=memory)
        questions = [
            question(at, text, id=f"{at}{text}")
            for at in (20, 40, None)
            for text in (ASK, "what came after the star?")
        ]
        events, summary = run(frames(200), questions, chosen, engines)
        return {a.id: (a.text, a.read) for a in answers(events)}, summary.pages["host"]

    spilled, on_host = asked_once("{device_mb: 0.92, host_mb: 2, when_full: drop-oldest}")
    kept, none = asked_once("{device_mb: 4, when_full: drop-oldest}")
    assert spilled == kept
    assert on_host > 0 == none


def test_full_history_refuses_when_memory_or_time_is_full():
    tight = system(**(FULL | {"memory": "{device_mb: 0.92, when_full: refuse}"}))
    with pytest.raises(MemoryBudgetError, match="device_mb"):
        run(frames(2000), chosen=tight)
    with pytest.raises(MemoryBudgetError, match="positions"):
        run(frames(2000), chosen=system(**FULL), engines=FakeEngineSet(max_position=100))


def test_a_budget_too_small_for_one_chunk_names_the_smallest_that_works():
    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        Session(FakeEngineSet(), system(memory="{device_mb: 0.001, when_full: drop-oldest}"))
    smallest = str(caught.value).split()[-1]
    run(frames(40), chosen=system(memory=f"{{device_mb: {smallest}, when_full: drop-oldest}}"))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Question(" "), "empty"),
        (Question("what " * 60), "ask a shorter one"),
        (Question(ASK, Fraction(-1)), "negative"),
        (Question("<|video_pad|>"), "control token"),
        (Question(ASK, sampling=Sampling(max_tokens=10**6)), "room for"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_at_once(bad, words):
    with Session(FakeEngineSet(), system()) as session, pytest.raises(QuestionError, match=words):
        session.submit(bad)


def test_a_stage_that_fails_fails_the_stream_and_its_questions():
    engines = FakeEngineSet()
    engines.vision.function = lambda **bindings: 1 / 0
    with Session(engines, system()) as session:
        for frame in frames(8):
            session.push(frame)
        with pytest.raises(ZeroDivisionError):
            session.ask(ASK)
        with pytest.raises(ZeroDivisionError):
            session.finish()


def test_a_session_that_cannot_be_opened_leaves_no_thread():
    engines, before = FakeEngineSet(), set(threading.enumerate())
    engines.llm.function = lambda **bindings: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Session(engines, system(), system_prompt="Answer in a word.")
    assert set(threading.enumerate()) <= before


def test_a_finished_stream_takes_questions_but_no_frames():
    with Session(FakeEngineSet(), system()) as session:
        session.push(frames(1)[0])
        session.finish()
        assert session.ask(ASK, sampling=SHORT).pages > 0
        with pytest.raises(VicortError, match="finished"):
            session.push(frames(2)[1])


def test_closing_a_session_wakes_a_thread_that_waits_for_room():
    gate, engines, failures = threading.Event(), FakeEngineSet(), []
    see = engines.vision.function
    engines.vision.function = lambda **bindings: see(**bindings) if gate.wait(timeout=30) else {}
    session = Session(engines, system())

    def push():
        try:
            for frame in frames(400):
                session.push(frame)
        except VicortError as error:
            failures.append(str(error))

    thread = threading.Thread(target=push)
    thread.start()
    threading.Timer(0.2, gate.set).start()
    session.close()
    thread.join(timeout=30)
    assert "open a new" in failures[0]


# ---- systems against plain statements ----


def test_vicostream_reads_the_top_chunks_by_cosine_and_ingests_over_the_last_n():
    engines = FakeEngineSet(seed=7)
    video = frames(80)
    (answer,) = answers(
        run(
            video,
            [question(None)],
            system(drop="{policy: chunk-intra, threshold: 0.2}"),
            engines,
            overlap=False,
        )[0]
    )
    embeddings = []
    for first in range(0, 80, 8):
        features = engines.vision.function(
            frames=np.stack([f.image for f in video[first : first + 8]])
        )["features"]
        norm = features / np.linalg.norm(features, axis=-1, keepdims=True)
        hot = np.array(
            [any((norm[j, p] @ norm[j + 1, p]) < 0.2 for j in range(3)) for p in range(4)]
        )
        embeddings.append(np.concatenate([features[0], *features[1:, hot]]).mean(axis=0))
    with Session(engines, system()) as session:
        asked = engines.embedding[session.inspect().prompt.words(ASK)].mean(axis=0)
    scores = [float(e @ asked / np.linalg.norm(e) / np.linalg.norm(asked)) for e in embeddings]
    chosen = sorted({*sorted(range(10), key=lambda m: -scores[m])[:2], 9})
    seconds = [(Fraction(4 * c), Fraction(8 * c + 7, 2)) for c in chosen]
    merged = [seconds[0]]
    for start, end in seconds[1:]:
        if start - merged[-1][1] == Fraction(1, 2):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    assert answer.read == tuple(merged)
    prefills = [run for run in engines.llm.runs if run["features"][0] >= 16]
    pages_at_most = 1 + 2 * 4  # prompt, two chunks of four units
    assert all(run["table"][3] <= 16 for run in prefills)
    assert pages_at_most <= 16


def test_simplestream_is_one_pass_over_prompt_latest_four_frames_and_question():
    engines, video = FakeEngineSet(seed=4), frames(30)
    (answer,) = answers(run(video, [question(10)], SYSTEMS["latest"], engines, overlap=False)[0])
    with Session(engines, system()) as session:
        prompt = session.inspect().prompt
    plain = Transcript(engines, prompt.prefix)
    plain.watch([*video[18:20], video[20], video[20]])
    assert answer.text == prompt.decode(plain.ask(prompt.question(ASK), 5))
    assert answer.read == ((Fraction(9), Fraction(10)),)


def test_uniform_reads_evenly_spaced_units():
    (answer,) = answers(
        run(
            frames(64),
            [question(None)],
            system(retrieval="{policy: even-units, units: 5}"),
            overlap=False,
        )[0]
    )
    starts = [start for start, _ in answer.read]
    places = [round(i * 31 / 4) for i in range(5)]
    assert [int(s) for s in starts] == places


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", known_systems())
def test_a_closed_session_is_freed_with_the_last_reference_to_it(name, overlap):
    """Without the garbage collector, which would hold up every thread of a process that has other
    sessions."""

    def watch():
        with Session(
            FakeEngineSet(), load_system(name), overlap=overlap, sampling=SHORT
        ) as session:
            for frame in frames(20):
                session.push(frame)
            session.ask(ASK, conversation="a")
            with pytest.raises(QuestionError):
                session.ask(ASK * 100)
            session.finish()
            session.summary()
        return [weakref.ref(part) for part in (session, session.inspect().memory)]

    gc.disable()
    try:
        assert [part() for part in watch()] == [None, None]
    finally:
        gc.enable()
