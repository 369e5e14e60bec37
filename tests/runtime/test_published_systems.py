"""Published systems on a toy model, against plain statements of what they do, and without the six
defects of ViCoStream's public code."""

import threading
from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import SYSTEMS, system
from support.transcript import Transcript
from support.whole_streams import ASK, SHORT, answers, question, run

from vicort.runtime.core import Sampling
from vicort.runtime.session import Session


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


# ---- the six defects ----


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
