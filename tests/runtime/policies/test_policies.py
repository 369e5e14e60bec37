"""Each policy against a plain statement of its rule."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.fake_engines import control_tokens

from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, MemoryBudgetError
from vicort.runtime.policies import chunk_index
from vicort.runtime.policies.chunk_index import (
    ChunkEntry,
    ChunkIndex,
    ChunksWithin,
    WithOpenChunk,
)
from vicort.runtime.policies.drop import ChunkIntra, KeepAll
from vicort.runtime.policies.ingest import AllChunks, LatestUnits, RecentChunks
from vicort.runtime.policies.overflow import LATEST, DropAlike, DropOldest, Refuse, ThinEvenly
from vicort.runtime.policies.retrieval import AllUnits, DistinctChunks, EvenUnits, SimilarChunks
from vicort.runtime.policies.system import known_systems, load_system, parse_system
from vicort.runtime.session import Session

NOTHING = ChunkIndex(width=6, unit_pages=2)
vectors = arrays(np.float32, 6, elements=st.floats(-1, 1, width=16))


@st.composite
def memories(draw):
    """Chunks with rising units, some already forgotten, and their digests."""
    held, digests = ChunkIndex(width=6, unit_pages=2, compares=True, finds_alike=True), {}
    for chunk in range(draw(st.integers(0, 12))):
        units = [unit for unit in range(4 * chunk, 4 * chunk + 4) if draw(st.booleans())]
        if units:
            digests[chunk] = draw(vectors)
            held.add(
                ChunkEntry(
                    chunk, units, draw(st.integers(len(units), 2 * len(units))), 4 * chunk + 3
                ),
                digests[chunk],
            )
        for old in [chunk for chunk in digests if draw(st.integers(0, 9)) == 0]:
            held.forget(old)
            del digests[old]
    return held, digests


def cosine(one, other):
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm else 0.0


@given(vectors, memories(), st.integers(0, 5), st.integers(0, 3))
def test_similar_chunks_takes_the_top_by_cosine_and_the_recent(question, memory, top, recent):
    held, digests = memory
    chosen = SimilarChunks(top=top, recent=recent).choose(question, held)
    wanted = {unit // 4 for unit in chosen}
    assert chosen == [unit for chunk in held for unit in chunk.units if chunk.chunk in wanted]
    latest = set(list(digests)[len(digests) - min(recent, len(digests)) :])
    scores = {chunk: cosine(digest, question) for chunk, digest in digests.items()}
    # the lowest score that is taken
    bar = sorted([*scores.values(), -2, *[2] * (top == 0)], reverse=True)[: max(top, 1)][-1]
    assert latest | {chunk for chunk, score in scores.items() if score > bar + 1e-6} <= wanted
    assert wanted <= latest | {chunk for chunk, score in scores.items() if score >= bar - 1e-6}
    assert min(top, len(digests)) <= len(wanted) <= top + len(latest)


@given(vectors, memories(), st.integers(4, 30), st.integers(0, 1), st.floats(0, 0.9375, width=16))
def test_distinct_chunks_are_like_the_question_and_unlike_each_other(
    question, memory, units, recent, relevance
):
    """Maximal marginal relevance as its authors state it: each choice is the best there was, as far
    as rounding can tell."""
    held, digests = memory
    policy, choices = DistinctChunks(units=units, recent=recent, relevance=relevance), []
    chosen = {unit // 4 for unit in policy.choose(question, Spied(held, choices))}
    pages = {chunk.chunk: chunk.pages for chunk in held}
    numbers = list(digests)
    left, selected = units * held.unit_pages, []
    for chunk in (numbers[place] for place in choices):
        if len(selected) >= recent:

            def worth(other):
                likest = max(
                    (cosine(digests[other], digests[each]) for each in selected), default=-1
                )
                return relevance * cosine(digests[other], question) - (1 - relevance) * likest

            fitting = [other for other in numbers if other not in selected and pages[other] <= left]
            assert worth(chunk) >= max(map(worth, fitting)) - 1e-5
        selected.append(chunk)
        left -= pages[chunk]
    assert chosen == set(selected)
    assert set(numbers[len(numbers) - min(recent, len(numbers)) :]) <= chosen
    assert left >= 0
    assert all(pages[other] > left for other in numbers if other not in chosen)


class Spied:
    """A chunk index that records the order in which chunks are chosen: `likeness` is called once
    for each."""

    def __init__(self, held, choices):
        self._held = held
        self._choices = choices
        self.unit_pages = held.unit_pages
        self.cosines = held.cosines
        self.at = held.at

    def __iter__(self):
        return iter(self._held)

    def __len__(self):
        return len(self._held)

    def likeness(self, index):
        self._choices.append(index)
        return self._held.likeness(index)


@given(
    vectors,
    memories(),
    st.integers(0, 48),
    st.integers(0, 48),
    st.sampled_from(
        [
            AllUnits(),
            SimilarChunks(top=1, recent=1),
            SimilarChunks(top=3, recent=0),
            EvenUnits(units=3),
            DistinctChunks(units=4, recent=1),
            DistinctChunks(units=6, recent=0, relevance=0.25),
        ]
    ),
)
def test_within_a_range_policies_choose_as_if_nothing_else_were_in_memory(
    question, memory, first, last, policy
):
    held, digests = memory
    pages = {unit: 1 + unit % 2 for chunk in held for unit in chunk.units if first <= unit <= last}
    alone = ChunkIndex(width=6, unit_pages=2, compares=True)
    for chunk in held:
        if units := [unit for unit in chunk.units if first <= unit <= last]:
            entry = ChunkEntry(chunk.chunk, units, sum(pages[unit] for unit in units), chunk.last)
            alone.add(entry, digests[chunk.chunk])
    within = ChunksWithin(held, pages)
    assert list(within) == list(alone)
    assert len(within) == len(alone)
    np.testing.assert_allclose(within.cosines(question), alone.cosines(question), atol=1e-6)
    for place in range(len(alone)):
        np.testing.assert_allclose(within.likeness(place), alone.likeness(place), atol=1e-6)
        assert within.at(place) == alone.at(place)
    # the rows of a matrix may be rounded in another way, so that what is equal may not be
    if len(set(np.round(alone.cosines(question), 5).tolist())) == len(alone):
        assert policy.choose(question, within) == policy.choose(question, alone)


@given(vectors, memories(), st.booleans(), st.integers(0, 48), st.integers(0, 48))
def test_some_chunks_alone_are_compared_as_all_are(question, memory, forked, first, last):
    held, _ = memory
    entry = ChunkEntry(99, [400], 2, 400)
    index = WithOpenChunk(held, entry, question[::-1].copy()) if forked else held
    entries = list(index)
    places = index.spanning(first, last)
    inside = [
        place
        for place, chunk in enumerate(entries)
        if chunk.units[0] <= last and chunk.units[-1] >= first
    ]
    assert list(places) == inside
    assert [index.at(place) for place in range(len(index))] == entries
    some = slice(places.start, places.stop)
    np.testing.assert_allclose(
        index.cosines(question, places), index.cosines(question)[some], atol=1e-6
    )
    for place in range(len(index)):
        np.testing.assert_allclose(
            index.likeness(place, places), index.likeness(place)[some], atol=1e-6
        )


@given(vectors, memories())
def test_a_chunk_index_compares_the_digests_of_the_chunks_it_holds(question, memory):
    held, digests = memory
    assert [chunk.chunk for chunk in held] == list(digests)
    assert [chunk.chunk for chunk in reversed(held)] == list(digests)[::-1]
    np.testing.assert_allclose(
        held.cosines(question), [cosine(digest, question) for digest in digests.values()], atol=1e-6
    )
    for place, digest in enumerate(digests.values()):
        np.testing.assert_allclose(
            held.likeness(place), [cosine(digest, other) for other in digests.values()], atol=1e-6
        )


@given(memories(), st.data())
def test_what_is_most_like_another_chunk_goes_first(memory, data):
    """Of the two, the one whose neighbours in time are closer to each other."""
    held, digests = memory
    if len(digests) < 2:
        return
    order = list(digests)
    chosen = order[: data.draw(st.integers(1, len(order)))]
    largest = {
        chunk: max(cosine(digest, digests[other]) for other in order if other != chunk)
        for chunk, digest in digests.items()
    }
    victim, most = held.most_alike(len(chosen)).chunk, max(largest[chunk] for chunk in chosen)
    assert victim in chosen
    assert largest[victim] == pytest.approx(most, abs=1e-5)
    twins = [
        other
        for other in order
        if other != victim and cosine(digests[victim], digests[other]) > most - 1e-5
    ]
    if len(twins) == 1 and twins[0] in chosen and largest[twins[0]] > most - 1e-5:

        def gap(chunk):
            place = order.index(chunk)
            inside = 0 < place < len(order) - 1
            return order[place + 1] - order[place - 1] if inside else np.inf

        assert gap(victim) <= gap(twins[0])


@given(st.lists(vectors, min_size=3, max_size=40), st.integers(2, 6), st.booleans())
def test_a_full_memory_always_loses_what_is_most_like_another_chunk(stream, size, compares):
    held = ChunkIndex(width=6, unit_pages=1, compares=compares, finds_alike=True)
    digests = {}
    for chunk, digest in enumerate(stream):
        held.add(ChunkEntry(chunk, [chunk], 1, chunk), digest)
        digests[chunk] = digest
        if len(digests) > size:
            victim = held.most_alike(len(digests) - 1).chunk
            largest = {
                one: max(cosine(digests[one], digests[other]) for other in digests if other != one)
                for one in list(digests)[:-1]
            }
            assert largest[victim] == pytest.approx(max(largest.values()), abs=1e-5)
            held.forget(victim)
            del digests[victim]
    assert [each.chunk for each in held] == list(digests)


def test_an_unchanging_scene_is_forgotten_before_what_happened_in_it():
    """Ten things in 2,000 chunks of nothing: all ten stay in a memory of 60 chunks, and what stays
    of the rest is spread over time."""
    random, held = np.random.default_rng(0), ChunkIndex(width=32, unit_pages=1, finds_alike=True)
    scene, things = random.normal(size=32), range(50, 550, 50)
    for chunk in range(2000):
        seen = random.normal(size=32) if chunk in things else 0.02 * random.normal(size=32)
        held.add(ChunkEntry(chunk, [chunk], 1, chunk), (scene + seen).astype(np.float32))
        while len(held) > 60:
            units = [unit for each in held for unit in each.units]
            for unit in DropAlike().victims(units, held):
                held.remove_unit(unit, unit, 1)
    kept = [each.chunk for each in held]
    assert set(things) <= set(kept)
    assert kept[-LATEST:] == list(range(2000 - LATEST, 2000))
    assert max(np.diff(kept)) < 2000 / 4


def test_a_tier_that_holds_only_the_latest_chunks_loses_its_oldest_unit():
    held = ChunkIndex(width=6, unit_pages=1, finds_alike=True)
    for chunk in range(LATEST):
        held.add(ChunkEntry(chunk, [2 * chunk, 2 * chunk + 1], 2, chunk), np.ones(6, np.float32))
    assert DropAlike().victims(range(4, 2 * LATEST), held) == [4]


@given(vectors, memories(), vectors)
def test_a_chunk_that_is_being_filled_is_seen_as_if_it_were_added(question, memory, digest):
    held, digests = memory
    entry = ChunkEntry(99, [400], 2, 400)
    view = WithOpenChunk(held, entry, digest)
    every = [*digests.values(), digest]
    assert [each.chunk for each in view] == [*digests, 99]
    assert len(view) == len(every)
    expected = [cosine(each, question) for each in every]
    np.testing.assert_allclose(view.cosines(question), expected, atol=1e-6)
    for place, each in enumerate(every):
        expected = [cosine(each, other) for other in every]
        np.testing.assert_allclose(view.likeness(place), expected, atol=1e-6)
    assert [each.chunk for each in held] == list(digests)


def test_many_chunks_are_compared_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(chunk_index, "MAX_COMPARED", 16)
    digests = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    held = ChunkIndex(width=6, unit_pages=2, compares=True)
    for chunk, digest in enumerate(digests):
        held.add(ChunkEntry(chunk, [chunk], 1, chunk), digest)
        np.testing.assert_allclose(
            held.likeness(chunk // 2),
            [cosine(digests[chunk // 2], each) for each in digests[: chunk + 1]],
            atol=1e-6,
        )


def test_a_room_that_does_not_hold_the_recent_chunks_is_refused(tiny_engines):
    with EngineSet.open(tiny_engines) as engines:
        system = load_system("distinct").with_(retrieval={"units": 15, "recent": 2})
        with pytest.raises(
            ConfigError,
            match=r"reads 15 units, and its 2 latest chunks may hold 16: set retrieval\.units",
        ):
            Session(engines, system)


@given(memories(), st.integers(2, 9))
def test_even_units_covers_all_time_with_even_steps(memory, count):
    held = [unit for chunk in memory[0] for unit in chunk.units]
    chosen = EvenUnits(units=count).choose(np.zeros(6), memory[0])
    assert len(chosen) == min(count, len(held))
    if len(held) > count:
        places = [held.index(unit) for unit in chosen]
        steps = np.diff(places)
        assert (places[0], places[-1]) == (0, len(held) - 1)
        assert steps.max() - steps.min() <= 1


@given(memories())
def test_all_units_are_all(memory):
    assert AllUnits().choose(np.zeros(6), memory[0]) == [
        unit for chunk in memory[0] for unit in chunk.units
    ]


def test_ingest_windows():
    assert (RecentChunks(chunks=3).window, AllChunks().window, LatestUnits(units=4).window) == (
        3,
        None,
        0,
    )


@given(st.integers(1, 12), st.integers(1, 20), st.floats(0.05, 1))
def test_the_fixed_ratio_keeps_the_share_it_names(units, tokens, keep):
    threshold, hot = ChunkIntra(keep=keep).rule(units, tokens)
    assert threshold < -1
    kept = tokens + (units - 1) * hot
    nearest = min(
        (tokens + (units - 1) * k for k in range(tokens + 1)),
        key=lambda total: abs(total - keep * units * tokens),
    )
    assert abs(kept - keep * units * tokens) <= abs(nearest - keep * units * tokens) + 1e-6


def test_the_fixed_ratio_keeps_positions_that_changed_most():
    random = np.random.default_rng(1)
    features = np.repeat(random.normal(size=(1, 6, 8)), 3, axis=0)
    features[1, 4] = -features[0, 4]  # a turn-about
    features[2, 1] += 0.3  # a slight change
    threshold, hot = ChunkIntra(keep=10 / 18).rule(3, 6)
    out = control_tokens(features, np.array([threshold]), np.array([hot]), None)
    assert out["kept"][: out["count"][0]].tolist() == [0, 1, 2, 3, 4, 5, 7, 10, 13, 16]


@given(st.integers(1, 4))
def test_keep_all_keeps_all(units):
    features = np.random.default_rng(units).normal(size=(units, 6, 8))
    threshold, hot = KeepAll().rule(units, 6)
    out = control_tokens(features, np.array([threshold]), np.array([hot]), None)
    assert out["kept"].tolist() == list(range(units * 6))
    assert out["count"] == units * 6


@given(st.integers(3, 40), st.integers(0, 400))
def test_thinning_keeps_every_s_th_unit_and_every_second_of_them_in_the_older_part(room, extra):
    held: list[int] = []
    for unit in range(room + extra):
        while len(held) >= room:
            for victim in ThinEvenly().victims(held, NOTHING):
                held.remove(victim)
        held.append(unit)
    steps = np.diff(held[:-1])  # the newest stands where it stands
    finest = 2 ** int(np.ceil(np.log2(max((room + extra) / room, 1))))
    assert held[0] == 0
    assert set(steps.tolist()) <= {finest // 2, finest, finest * 2}
    assert sorted(steps.tolist(), reverse=True) == steps.tolist()


def test_the_other_overflows():
    assert DropOldest().victims([3, 5, 9], NOTHING) == [3]
    with pytest.raises(MemoryBudgetError, match="--system distinct"):
        Refuse().victims([1], NOTHING)


@pytest.mark.parametrize("name", known_systems())
def test_every_system_that_ships_loads(name):
    assert load_system(name).name == name


GOOD = """
name: x
drop: {policy: none}
ingest: {policy: recent-chunks, chunks: 2}
retrieval: {policy: all}
memory: {device_mb: 1, when_full: drop-oldest}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("drop:", "drip:"), "unknown key 'drip'"),
        (("policy: none", "policy: maybe"), "chunk-intra, differential, few-tokens, motion, none"),
        (("chunks: 2", "chunk: 2"), "takes chunks"),
        (("chunks: 2", "chunk: 2"), "ingest: unknown key 'chunk'"),
        (("chunks: 2", "chunks: -2"), "ingest.chunks is -2: it should be greater than or equal"),
        (("device_mb: 1", "device_gb: 1"), "device_mb, host_mb, hours, tokens, when_full"),
        (("device_mb: 1", "device_mb: lots"), "memory.device_mb"),
        (("device_mb: 1", "device_mb: 1, host_mb: 5"), "reads every page on the device"),
        (("when_full: drop-oldest", "when_full: panic"), "drop-oldest, refuse, thin-evenly"),
        (
            (", when_full: drop-oldest", ""),
            "memory: key 'when_full' is missing: choose one of drop",
        ),
        (("policy: none", "policy: none, keep: 1"), "policy none takes no parameters"),
        (("policy: none", "policy: chunk-intra"), "drop: set either threshold or keep; policy"),
        (("retrieval: {policy: all}", ""), "key 'retrieval' is missing"),
        (("retrieval: {policy: all}", "retrieval:"), "retrieval is None: name its policy as"),
        (("{policy: none}", "none"), "drop is 'none': name its policy as drop.policy; choose one"),
        (("name: x", "name: 5"), "name is 5: give at most 100"),
        (("device_mb: 1", "device_mb: 0x" + "f" * 6000), "an integer of more than 1000 digits"),
        (("name: x", ""), "'name' is missing"),
        (("memory: {", "memory: 5 #"), "memory is 5"),
        (("name: x", "name: ["), "is not YAML"),
        (("policy: none", "policy: differential"), "drop: key 'threshold' is missing"),
        (("policy: none", "policy: differential, threshold: 2"), "drop.threshold is 2: it should"),
    ],
)
def test_a_wrong_yaml_is_refused_in_one_line_that_says_what_is_allowed(change, words):
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(ConfigError) as caught:
        parse_system(text, "mine.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("drop", ["chunk-intra", "differential"])
def test_tokens_are_not_dropped_from_units_that_wait_for_a_question(drop):
    settings = [f"drop.policy={drop}", "drop.threshold=0.5"]
    with pytest.raises(ConfigError, match=r"latest-units keeps .* whole.*set drop to none$"):
        load_system("simplestream").with_settings(settings)


def test_an_unknown_system_lists_the_known(tmp_path):
    with pytest.raises(ConfigError, match=f"vikostream.*{', '.join(known_systems())}"):
        load_system("vikostream")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_system(tmp_path / "none.yaml")


def test_a_system_may_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_system(path).name == "x"
    assert load_system(path).drop == KeepAll()


def test_a_changed_copy_is_validated_like_a_file():
    system = load_system("distinct")
    changed = system.with_(memory={"device_mb": 64}, retrieval={"units": 9}, chunk={"frames": 8})
    assert (changed.memory.device_mb, changed.memory.host_mb) == (64, system.memory.host_mb)
    assert changed.retrieval == DistinctChunks(units=9, recent=1, relevance=0.5)
    assert (changed.chunk_frames, changed.drop) == (8, system.drop)
    assert system.with_(retrieval=EvenUnits(units=4)).retrieval == EvenUnits(units=4)
    assert system.with_() == system
    for change, words in (
        ({"memory": {"device_mb": -1}}, "memory.device_mb is -1"),
        ({"budget": {"device_mb": 1}}, "unknown key 'budget'"),
        ({"retrieval": AllUnits()}, "reads every page on the device"),
    ):
        with pytest.raises(ConfigError, match=f"^system distinct: .*{words}"):
            system.with_(**change)


@pytest.mark.parametrize("name", known_systems())
def test_what_a_system_describes_of_itself_is_a_system_file(name):
    system = load_system(name)
    keys = system.model_fields_set
    assert parse_system(json.dumps(system.model_dump(include=keys)), "again.yaml") == system


@pytest.mark.parametrize(
    ("system", "command", "doubtful"),
    [
        ("videollm-online", "vicort-build tiny --backend openvino", True),
        ("videollm-online", "vicort-build tiny-live --backend openvino", False),
        ("videollm-online", "vicort-build /a/model --adapter /a/speaks", False),
        ("videollm-online", "vicort-build MODEL --out engines/x", True),
        ("vicostream", "vicort-build tiny --backend openvino", False),
    ],
)
def test_a_model_that_was_not_taught_to_speak_by_itself(
    system: str, command: str, doubtful: bool
) -> None:
    chosen = load_system(system)
    warning = chosen.speaks.doubt(chosen.name, command)
    assert ("without an adapter" in warning) == doubtful
    assert warning.isprintable()
