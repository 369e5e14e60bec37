"""The systems' comparison: its statistics, its twins, what it counts, and that one failing system
costs one row."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bench_result
from support.fake_engines import FakeEngineSet
from support.sizes import examples, slow
from support.streams import frames

from vicort.benchmarks import bench
from vicort.benchmarks.common.children import ChildFailed, in_child
from vicort.benchmarks.common.observed_engine import ObservedEngine
from vicort.benchmarks.common.settings import QUICK
from vicort.benchmarks.common.workload import describe_system
from vicort.benchmarks.systems import cap, migration, pictures, significance, systems
from vicort.benchmarks.systems.system_answers import _counted, old_ages
from vicort.benchmarks.systems.tokens_read import TokenCounter, visible_tokens
from vicort.benchmarks.systems.twins import TWIN, twin_of, units_read, with_store
from vicort.runtime.core import Sampling
from vicort.runtime.errors import ConfigError, MemoryBudgetError
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

PNG = b"\x89PNG"


# ---- statistics


@given(st.lists(st.integers(-7, 7), max_size=9))
def test_sign_flips_are_counted_exactly(differences):
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    assert significance.sign_flip_p(differences) == pytest.approx(expected)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6))
def test_holm_by_its_definition(p):
    """The largest, over all at most as large, of p times how many are at least as large at that
    place."""
    order = sorted(p, key=p.__getitem__)
    expected = {
        name: min(1.0, max((len(p) - k) * p[order[k]] for k in range(order.index(name) + 1)))
        for name in p
    }
    assert significance.holm(p) == pytest.approx(expected)


def test_systems_that_differ_by_chance_are_seldom_told_apart():
    random = np.random.default_rng(1)
    streams = [{s: random.random(14) < 0.6 for s in range(12)} for _ in range(400)]
    told = [
        significance.compare(a, b)["p"] < 0.05
        for a, b in zip(streams[::2], streams[1::2], strict=True)
    ]
    assert np.mean(told) < 0.08


def test_a_difference_is_taken_over_the_same_questions():
    ours, theirs = {0: [True] * 7, 1: [True] * 7}, {0: [False] * 7, 1: [True] * 7}
    compared = significance.compare(ours, theirs)
    assert (compared["difference"], compared["p"], compared["questions"]) == (0.5, 1.0, 14)
    assert compared["low"] <= 0.5 <= compared["high"]
    with pytest.raises(ValueError, match="same questions"):
        significance.compare(ours, {0: [True] * 6, 1: [True]})


# ---- twins and bytes


@given(st.floats(0, 1e6), st.integers(1, 300))
def test_a_twin_reads_no_less_and_hardly_more(tokens, unit_tokens):
    units = units_read(tokens, unit_tokens)
    assert units * unit_tokens >= tokens
    assert units == 2 or (units - 1) * unit_tokens < tokens


def test_a_twin_is_uniform_with_that_many_units():
    twin = twin_of(load_system("vicostream"), 748.6, 16)
    assert describe_system(twin) == describe_system(load_system("uniform")) | {
        "name": "uniform = vicostream",
        "retrieval": {"policy": "even-units", "units": 47},
    }


@pytest.mark.parametrize("name", ["vicostream", "uniform", "simplestream"])
def test_the_store_is_the_same_for_all(name):
    engines = FakeEngineSet()
    system = with_store(engines, load_system(name), 2.5)
    with Session(engines, system, overlap=False) as session:
        memory = session.inspect().memory
        stored = (
            memory.tiers.stream_slots.count
            * (memory.pool.data[0].nbytes + memory.pool.cell_positions[0].nbytes)
            / 1e6
            + system.budget.host_mb
        )
    assert stored == pytest.approx(2.5, abs=0.01)


def test_who_refuses_to_forget_has_room_for_all():
    system = with_store(FakeEngineSet(), load_system("full-history"), 2.5)
    assert system.budget == (1024, 0)


def test_a_store_that_is_too_small_is_one_line():
    with pytest.raises(MemoryBudgetError, match=r"0\.01 MB is too small"):
        with_store(FakeEngineSet(), load_system("vicostream"), 0.01)


@given(st.integers(0, 2**31), st.booleans(), st.booleans())
@settings(max_examples=examples(30))
def test_visible_tokens_by_counting_them(seed, by_head_table, by_head_where):
    random = np.random.default_rng(seed)
    where = random.integers(-1, 3, (6, *((2, 3) if by_head_where else (1, 1)), 4, 3)).astype(
        np.int32
    )
    table = random.integers(-1, 6, (*((2, 3) if by_head_table else (1, 1)), 5)).astype(np.int32)
    counts = []
    for layer, head in itertools.product(range(2), range(3)):
        slots = table[layer % table.shape[0], head % table.shape[1]]
        cells = [
            where[slot, layer % where.shape[1], head % where.shape[2]]
            for slot in slots
            if slot >= 0
        ]
        counts.append(sum(int((cell[:, 0] >= 0).sum()) for cell in cells))
    if not (by_head_table or by_head_where):
        counts = counts[:1]
    assert visible_tokens(table, where) == pytest.approx(np.mean(counts))


@pytest.mark.parametrize("name", ["full-history", "vicostream", "uniform"])
def test_what_a_question_reads_is_what_its_answer_says(name):
    engines = FakeEngineSet()
    counter = TokenCounter()
    engines.llm = ObservedEngine(engines.llm, counter.run)
    said = []
    for _ in range(2):  # a stream and another
        with Session(
            engines, load_system(name), overlap=False, sampling=Sampling(max_tokens=3)
        ) as session:
            for count, first in ((8, 0), (12, 8), (40, 20)):
                for frame in frames(count, start=first):
                    session.push(frame)
                said += [
                    session.ask(text).tokens_read
                    for text in ("what is there now?", "what color was the star?")
                ]
    counter.flush()
    assert counter.counts == said
    assert len(set(said)) > 1


def test_counts_are_used_only_if_every_question_was_counted():
    amounts = replace(QUICK, system_streams=2, system_ages=(0, 8))
    counter = TokenCounter()
    counter.counts = [float(n) for n in range(2 * (1 + 2 * 7))]
    counted = _counted(counter, 2, amounts)
    assert counted is not None
    assert counted.shape == (2, 15)
    counter.counts.pop()
    assert _counted(counter, 2, amounts) is None


def test_old_is_64_chunks_or_the_oldest_there_is():
    assert old_ages((0, 8, 511, 512, 1000), 8) == [512, 1000]
    assert old_ages((0, 8), 8) == [8]


# ---- processes


def fails() -> None:
    raise ConfigError("so and\nso")


def test_work_in_a_process_of_its_own():
    assert in_child(os.getcwd, seconds=60) == os.getcwd()
    with pytest.raises(ChildFailed, match=r"^so and so$"):
        in_child(fails, seconds=60)
    with pytest.raises(ChildFailed, match="died with exit code 5"):
        in_child(os._exit, 5, seconds=60)
    with pytest.raises(ChildFailed, match="longer than 1 s"):
        in_child(time.sleep, 60, seconds=1)


def test_what_is_done_stays_until_all_is(tmp_path):
    done = systems.Done(tmp_path, "key")
    assert done.get("a system answers", lambda: {"a": 1}) == {"a": 1}
    failed = {"a": {"error": "no"}}
    assert done.get("b answers", lambda: failed) == failed
    again = systems.Done(tmp_path, "key")
    assert again.get("a system answers", lambda: {"a": 2}) == {"a": 1}
    assert again.get("b answers", lambda: {"b": 1}) == {"b": 1}  # what failed is tried again
    assert systems.Done(tmp_path, "other").get("a system answers", lambda: {"a": 3}) == {"a": 3}
    again.forget()
    assert systems.Done(tmp_path, "key").get("a system answers", lambda: {"a": 2}) == {"a": 2}


@pytest.mark.slow
def test_a_failing_system_costs_its_row(tiny_engines, tmp_path, monkeypatch):
    """Real engines, real streams: a system, its twin, and one that is not there."""
    monkeypatch.setattr(systems, "known_systems", lambda: ["vicostream", "no-such"])
    # in this process, because a child takes seconds to start
    monkeypatch.setattr(systems, "in_child", lambda work, *arguments, seconds: work(*arguments))
    amounts = replace(
        QUICK, system_ages=(0, 2), system_fill_frames=16, system_rate_frames=16, replay_s=0.6
    )
    part = systems.measure(systems.EngineDirs(tiny_engines, tiny_engines), tmp_path, amounts)
    rows = part["rows"]
    assert set(rows) == {"vicostream", TWIN + "vicostream", "no-such"}
    assert rows["no-such"]["error"].startswith("unknown system 'no-such'")
    json.dumps(part)
    for name, row in rows.items():
        if name != "no-such":
            assert "error" not in row, row
            assert {task: cell["asked"] for task, cell in row["accuracy"].items()} == {
                "now": 7,
                "0 units": 7,
                "2 units": 7,
            }
        if name == "vicostream":
            assert row["ingest"]["frames_a_second"]["n"] == amounts.system_repeats
            assert row["ttft_ms"]["while ingesting"]["n"] == amounts.system_loaded_questions
    twin = rows[TWIN + "vicostream"]
    assert twin["tokens_read"] >= rows["vicostream"]["tokens_read"] > 16
    assert twin["tokens_read"] < rows["vicostream"]["tokens_read"] + 16
    assert rows["vicostream"]["replay"]["frames"] == 18
    assert not list((tmp_path / "systems").glob("done-*"))
    assert set(part["verdicts"]) == {"vicostream"}


# ---- tables, pictures, CAP


def test_verdicts_mark_only_what_is_told_apart():
    verdicts = bench_result.result()["parts"]["systems"]["verdicts"]
    assert [verdicts[name]["twin"]["old"]["better"] for name in ("good", "bad")] == [1, -1]
    assert verdicts["good"]["twin"]["8 units"]["better"] == 0  # both know everything
    assert verdicts["good"]["simplestream"]["old"]["better"] == 1
    assert "broken" not in verdicts
    assert all(
        side["old"]["p_holm"] >= side["old"]["p"]
        for name in verdicts
        for side in verdicts[name].values()
    )


def test_tables_say_who_beats_whom_and_what_failed(tmp_path):
    result = bench_result.result()
    text = bench.report(result)
    assert "broken FAILED: ConfigError: no such thing" in text
    (good,) = [
        line
        for line in text.splitlines()
        if line.startswith("  good ") and "p " in line and ":" in line
    ]
    assert "better" in good
    assert "2 cores" in text
    out = tmp_path / "bench.json"
    written = bench.pages(result, out)
    assert [path.name for path in written] == [
        "bench-systems.md",
        "bench-migration.md",
        "bench-cap.md",
    ]
    page = written[0].read_text()
    assert "| good |" in page
    assert "20 MB of pages" in page
    assert "Abacus" in page


@pytest.mark.parametrize(
    "draw", [*slow(pictures.draw_systems, pictures.draw_migration), pictures.draw_cap]
)
def test_a_picture_of_a_result_is_written(draw, tmp_path):
    path = tmp_path / "picture.png"
    assert draw(bench_result.result(), path) == path
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 30_000


@pytest.mark.parametrize(
    "draw", [pictures.draw_systems, pictures.draw_migration, pictures.draw_cap]
)
def test_no_result_has_no_picture(draw, tmp_path):
    assert draw({"parts": {}, "conditions": bench_result.CONDITIONS}, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def test_context_ends_at_the_first_age_that_is_not_known():
    cells = {
        f"{age} units": {"accuracy": share}
        for age, share in ((0, 1.0), (8, 0.75), (64, 0.7), (250, 1.0))
    }
    assert cap.remembered(cells, [0, 8, 64, 250]) == 8
    assert cap.remembered({"0 units": {"accuracy": 0.0}}, [0]) == 0


@pytest.mark.parametrize(
    ("rate", "ttft", "sign"),
    [
        (100, 10, 0),
        (104, 10, 0),
        (106, 10, 1),
        (106, 11, 0),
        (100, 9, 1),
        (100, 11, -1),
        (94, 10.2, -1),
        (90, 8, 0),
    ],
)
def test_performance_is_better_only_if_nothing_of_it_is_worse(rate, ttft, sign):
    assert (
        cap.performance(
            {"frames_a_second": rate, "ttft_ms": ttft}, {"frames_a_second": 100, "ttft_ms": 10}
        )
        == sign
    )


def test_cap_says_what_is_improved():
    place = bench_result.result()["parts"]["cap"]
    assert place["systems"]["good"]["against"]["twin"] == {"C": 1, "A": 1, "P": 0}
    assert place["systems"]["bad"]["against"]["twin"] == {"C": 0, "A": -1, "P": 0}
    assert place["systems"]["good"]["context_s"] == 1000
    statements = cap.statements(place)
    assert "good, against its uniform: improves context and accuracy; worsens none." in statements
    assert statements[-1].endswith("none of them.")
    with pytest.raises(ConfigError, match="add --only systems"):
        cap.place({})


# ---- migration


def test_one_value_at_a_time_leaves_the_base():
    base = migration.Setting.of("top", migration.BASE["top"])
    for axis, values in migration.AXES.items():
        assert migration.BASE[axis] in values
        for value in values:
            changed = migration.Setting.of(axis, value)
            differing = [
                name for name in migration.BASE if getattr(changed, name) != getattr(base, name)
            ]
            assert differing == ([axis] if value != migration.BASE[axis] else [])
    system = migration.Setting.of("chunk", 4).system()
    assert (system.chunk_frames, system.ingest.chunks, system.retrieval.top, system.drop.keep) == (
        4,
        4,
        32,
        0.3,
    )


def test_where_the_slowest_stage_changes():
    points = [
        {"value": value, "slowest": stage}
        for value, stage in ((1, "vision"), (2, "vision"), (4, "prefill"), (8, "vision"))
    ]
    assert migration.migrations(points) == [
        {"after": 2, "before": 4, "from": "vision", "to": "prefill"},
        {"after": 4, "before": 8, "from": "prefill", "to": "vision"},
    ]


def test_a_point_of_the_study_measures_what_it_says(tiny_engines, tmp_path):
    from vicort.benchmarks.systems.recorded import read_recording, write_recording
    from vicort.runtime.engines.engine_set import EngineSet

    write_recording(tmp_path / "recording.mp4")
    workload = read_recording(tmp_path / "recording.mp4")
    assert workload.frame(161).time == Fraction(161, 2)
    assert np.array_equal(workload.frame(161).image, workload.frame(1).image)
    amounts = replace(QUICK, migration_fill_frames=16, migration_repeats=1, migration_questions=1)
    with EngineSet.open(tiny_engines) as engines:
        point = migration.point(engines, migration.Setting.of("keep", 0.5), workload, amounts)
    assert point["kept_share"] == pytest.approx(0.5, abs=0.05)
    assert point["slowest"] == max(
        point["stage_ms_a_frame"], key=point["stage_ms_a_frame"].__getitem__
    )
    assert point["formula_frames_a_second"] == pytest.approx(
        1e3 / max(point["stage_ms_a_frame"].values()), rel=1e-2
    )


# ---- the result file


def test_parts_stay_when_only_new_amounts_came(tmp_path):
    out = tmp_path / "bench.json"
    now = {
        "schema": 1,
        "quick": False,
        "settings": {"chunks": 4, "ages": [0, 8]},
        "conditions": bench_result.CONDITIONS,
    }
    for settings_then, stays in (
        ({"chunks": 4}, True),
        ({"chunks": 4, "ages": [0, 8]}, True),
        ({"chunks": 5}, False),
        ({"gone": 1}, False),
    ):
        out.write_text(json.dumps(now | {"settings": settings_then, "parts": {"overlap": {}}}))
        assert bool(bench.earlier_parts(out, now)) == stays
