"""Each policy against a plain statement of its rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.fake_engines import control_tokens

from vicort.runtime.errors import ConfigError, MemoryBudgetError
from vicort.runtime.policies.drop import DROPS, ChunkIntra, KeepAll
from vicort.runtime.policies.ingest import AllChunks, LatestFrames, RecentChunks
from vicort.runtime.policies.overflow import DropOldest, Refuse, ThinEvenly
from vicort.runtime.policies.retrieval import AllUnits, EvenUnits, Remembered, SimilarChunks
from vicort.runtime.system import known_systems, load_system, parse_system

vectors = arrays(np.float32, 6, elements=st.floats(-1, 1, width=16))


@st.composite
def memories(draw):
    """Chunks with rising units, some already forgotten, and digests."""
    unit, held = 0, []
    for chunk in range(draw(st.integers(0, 12))):
        units = tuple(u for u in range(unit, unit + 4) if draw(st.booleans()))
        unit += 4
        if units:
            held.append(Remembered(chunk, units, draw(vectors)))
    return held


@given(vectors, memories(), st.integers(0, 5), st.integers(0, 3))
def test_similar_chunks_takes_the_top_by_cosine_and_the_recent(question, memory, top, recent):
    chosen = SimilarChunks(top=top, recent=recent).choose(question, memory)

    def cosine(chunk):
        norm = np.linalg.norm(question) * np.linalg.norm(chunk.digest)
        return float(question @ chunk.digest) / norm if norm else 0.0

    ranked = sorted(memory, key=lambda chunk: (-cosine(chunk), chunk.chunk))
    wanted = {chunk.chunk for chunk in ranked[:top]} | {chunk.chunk for chunk in memory[len(memory) - min(recent, len(memory)) :]}
    assert chosen == [unit for chunk in memory if chunk.chunk in wanted for unit in chunk.units]


@given(memories(), st.integers(2, 9))
def test_even_units_covers_all_time_with_even_steps(memory, count):
    held = [unit for chunk in memory for unit in chunk.units]
    chosen = EvenUnits(units=count).choose(np.zeros(6), memory)
    assert len(chosen) == min(count, len(held))
    if len(held) > count:
        places = [held.index(unit) for unit in chosen]
        steps = np.diff(places)
        assert (places[0], places[-1]) == (0, len(held) - 1)
        assert steps.max() - steps.min() <= 1


@given(memories())
def test_all_units_are_all(memory):
    assert AllUnits().choose(np.zeros(6), memory) == [unit for chunk in memory for unit in chunk.units]


def test_ingest_windows():
    assert (RecentChunks(chunks=3).window, AllChunks().window, LatestFrames(frames=4).window) == (3, None, 0)


@given(st.integers(1, 12), st.integers(1, 20), st.floats(0.05, 1))
def test_the_fixed_ratio_keeps_the_share_it_names(units, tokens, keep):
    threshold, hot = ChunkIntra(keep=keep).bounds(units, tokens)
    assert threshold < -1
    kept = tokens + (units - 1) * hot
    nearest = min((tokens + (units - 1) * k for k in range(tokens + 1)), key=lambda total: abs(total - keep * units * tokens))
    assert abs(kept - keep * units * tokens) <= abs(nearest - keep * units * tokens) + 1e-6


def test_the_fixed_ratio_keeps_positions_that_changed_most():
    random = np.random.default_rng(1)
    features = np.repeat(random.normal(size=(1, 6, 8)), 3, axis=0)
    features[1, 4] = -features[0, 4]  # a turn-about
    features[2, 1] += 0.3  # a slight change
    threshold, hot = ChunkIntra(keep=10 / 18).bounds(3, 6)
    out = control_tokens(features, np.array([threshold]), np.array([hot]), None)
    assert out["kept"][: out["count"][0]].tolist() == [0, 1, 2, 3, 4, 5, 7, 10, 13, 16]


@given(st.integers(1, 4))
def test_keep_all_keeps_all(units):
    features = np.random.default_rng(units).normal(size=(units, 6, 8))
    threshold, hot = KeepAll().bounds(units, 6)
    out = control_tokens(features, np.array([threshold]), np.array([hot]), None)
    assert out["kept"].tolist() == list(range(units * 6))
    assert out["count"] == units * 6


@given(st.integers(3, 40), st.integers(0, 400))
def test_thinning_keeps_every_s_th_unit_and_every_second_of_them_in_the_older_part(room, extra):
    held: list[int] = []
    for unit in range(room + extra):
        while len(held) >= room:
            for victim in ThinEvenly().victims(held):
                held.remove(victim)
        held.append(unit)
    steps = np.diff(held[:-1])  # the newest stands where it stands
    finest = 2 ** int(np.ceil(np.log2(max((room + extra) / room, 1))))
    assert held[0] == 0
    assert set(steps.tolist()) <= {finest // 2, finest, finest * 2}
    assert sorted(steps.tolist(), reverse=True) == steps.tolist()


def test_the_other_overflows():
    assert DropOldest().victims([3, 5, 9]) == [3]
    with pytest.raises(MemoryBudgetError, match="vicostream"):
        Refuse().victims([1])


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
        (("policy: none", "policy: maybe"), "chunk-intra, "),
        (("chunks: 2", "chunk: 2"), "takes chunks"),
        (("chunks: 2", "chunks: -2"), "ingest.chunks"),
        (("device_mb: 1", "device_gb: 1"), "device_mb, host_mb, when_full"),
        (("device_mb: 1", "device_mb: lots"), "memory.device_mb"),
        (("device_mb: 1", "device_mb: 1, host_mb: 5"), "reads every page on the device"),
        (("when_full: drop-oldest", "when_full: panic"), "drop-oldest, refuse, thin-evenly"),
        (("name: x", ""), "'name' is missing"),
        (("memory: {", "memory: 5 #"), "memory is 5"),
        (("name: x", "name: ["), "is not YAML"),
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


def test_an_unknown_system_lists_the_known(tmp_path):
    with pytest.raises(ConfigError, match=f"vikostream.*{', '.join(known_systems())}"):
        load_system("vikostream")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_system(tmp_path / "none.yaml")


def test_a_system_may_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_system(path).name == "x"
    assert DROPS.create({"policy": "none"}, "here") == KeepAll()
