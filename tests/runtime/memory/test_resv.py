"""ReSV on streams: a session reads what the plain statement of its rules says, overlapped or in
sequence, and stays bounded."""

import resource
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet
from support.key_clusters import PlainMemory, clusters_of, groups_of
from support.streams import frames

from vicort.runtime.core import Answer, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.memory.long_term.key_clusters import KeyClusterMemory
from vicort.runtime.policies.system import load_system, parse_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

FILE = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
ASK = "what color was the circle?"


def resv(host_mb, frames=4, **changes):
    """The system `resv` with a short window and little memory, which a short stream fills."""
    shipped = load_system("resv")
    text = f"""
name: small
chunk: {{frames: {frames}}}
drop: {{policy: none}}
ingest: {{policy: recent-chunks, chunks: 1}}
long_term:
  {{policy: key-clusters, hash_bits: 24, threshold: 7, recent: 8, most_tokens: 8, share: 0.5,
    most_cells: 200}}
memory: {{device_mb: 24, host_mb: {host_mb}, when_full: drop-oldest}}
"""
    small = parse_system(text, "small.yaml")
    return small.with_(
        long_term=shipped.long_term.model_copy(update={**small.long_term.model_dump(), **changes})
    )


def watch(engines, system, video, times, overlap=True):
    """Answers by id, and the session's long-term memory at the end."""
    events = []
    with Session(
        engines,
        system,
        overlap=overlap,
        on_event=events.append,
        fps="source",
        sampling=Sampling(max_tokens=4),
    ) as session:
        for at in times:
            session.submit(Question(ASK, None if at is None else Fraction(at), str(at)))
        for frame in video:
            session.push(frame)
        session.finish()
        answers = {event.id: event for event in events if isinstance(event, Answer)}
        return answers, session.inspect().memory.long_term, session.summary()


@pytest.fixture
def calls(monkeypatch):
    """The calls of a memory and its views, in order: (memory, chunk, None) for a chunk that is
    absorbed; (memory, q, positions of what was chosen) for a query."""
    calls = []
    absorb, take_view = KeyClusterMemory.absorb, KeyClusterMemory.view

    def recorded_absorb(self, departing):
        absorb(self, departing)
        calls.append((self, departing, None))

    def recorded_view(self, leased=True, within=None):
        view = take_view(self, leased, within)
        choose = view.choose

        def recorded_choose(q):
            selection = choose(q)
            calls.append((self, q, positions(self, selection)))
            return selection

        view.choose = recorded_choose
        return view

    monkeypatch.setattr(KeyClusterMemory, "absorb", recorded_absorb)
    monkeypatch.setattr(KeyClusterMemory, "view", recorded_view)
    return calls


def positions(memory, selection):
    """The positions of the tokens in a selection's cells, by layer and head."""
    return {
        (layer, head): [
            tuple(position)
            for slot, count in zip(
                selection.cells[layer, head], selection.filled[layer, head], strict=True
            )
            for position in memory.pool.cell_positions[slot, layer, head, :count].tolist()
        ]
        for layer, head in groups_of(memory.model)
    }


def check_choices(calls):
    """Replays the calls of a sequential session on the plain statement; returns how many choices of
    a layer and head left something out."""
    plain, by_serial, partial = PlainMemory(calls[0][0]) if calls[0][2] is None else None, [], 0
    for memory, argument, read in calls:
        if read is None:
            plain = plain or PlainMemory(memory)
            plain.absorb(argument)
            by_serial += map(tuple, argument.positions.tolist())
        elif plain:
            for group, serials in plain.choose(argument).items():
                assert sorted(read[group]) == sorted(by_serial[serial] for serial in serials)
                partial += 0 < len(serials) < sum(map(len, plain.groups[group].clusters))
    return partial


def test_a_stream_reads_what_the_plain_statement_chooses(calls):
    watch(FakeEngineSet(), resv(0.1, share=0.7), frames(40), [7, 15, None], overlap=False)
    assert check_choices(calls) > 40


def test_so_does_a_stream_of_the_real_engines(calls, tiny_engines):
    with EngineSet.open(tiny_engines) as engines, open_source(str(FILE)) as source:
        video = [
            frame for number, frame in enumerate(source.frames(lambda at: True)) if not number % 15
        ]
        watch(engines, resv(2.4, frames=8, hash_bits=128), video, [8, None], overlap=False)
    assert check_choices(calls) > 40


def contents(memory):
    """Clusters and their tokens, whatever cells they are in."""
    means = [
        (serials, mean.tobytes())
        for group in range(len(groups_of(memory.model)))
        for serials, mean in clusters_of(memory, group)
    ]
    tokens = {}
    _, filled = memory._cells.filled(
        memory._tokens[:, : memory._cells.used], memory.model.page_tokens
    )
    for number, (layer, head) in enumerate(groups_of(memory.model)):
        for slot in np.flatnonzero(filled[number]):
            for cell in range(filled[number, slot]):
                tokens[number, int(memory._serials[slot, number, cell])] = (
                    memory.pool.data[slot, layer, head, :, cell].tobytes(),
                    memory.pool.cell_positions[slot, layer, head, cell].tobytes(),
                )
    return means, tokens


def test_overlapped_and_sequential_agree_to_the_last_bit():
    """With questions running while memory is full and evicts."""

    def results(overlap):
        answers, memory, summary = watch(
            FakeEngineSet(), resv(0.06, share=0.7), frames(80), [3, 7, 12, 13, None], overlap
        )
        assert memory._serials.max() > 2 * memory.capacity  # it had to evict
        texts = {
            name: (answer.text, answer.seen_until, answer.read, answer.pages)
            for name, answer in answers.items()
        }
        return texts, contents(memory), summary.chunks

    assert results(True) == results(False)


def test_on_real_engines_too(tiny_engines):
    def results(overlap):
        with EngineSet.open(tiny_engines) as engines, open_source(str(FILE)) as source:
            video = [
                frame
                for number, frame in enumerate(source.frames(lambda at: True))
                if not number % 5
            ]
            answers, memory, _ = watch(
                engines, resv(2.2, frames=8, hash_bits=128), video, [6, 11, 17, None], overlap
            )
        assert memory._serials.max() > memory.capacity
        return {
            name: (answer.text, answer.read, answer.pages) for name, answer in answers.items()
        }, contents(memory)

    assert results(True) == results(False)


@pytest.mark.slow
def test_a_long_stream_is_flat(tiny_engines):
    """4,000 chunks of two frames that repeat: nothing grows, and every question is answered."""
    with EngineSet.open(tiny_engines) as engines, open_source(str(FILE)) as source:
        clip = [
            frame for number, frame in enumerate(source.frames(lambda at: True)) if not number % 10
        ]
        sizes = []
        with Session(engines, resv(3, frames=2, hash_bits=128), fps="source") as session:
            for number in range(8000):
                session.push(
                    replace(clip[number % len(clip)], time=Fraction(number, 2), index=number)
                )
                if number % 1000 == 999:
                    session.ask("what is there now?")
                    sizes.append(
                        (
                            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                            len(session.inspect().memory.long_term._pages),
                        )
                    )
        assert sizes[-1][0] < 1.05 * sizes[2][0]
        assert sizes[-1][1] < 4 * sizes[2][1]
