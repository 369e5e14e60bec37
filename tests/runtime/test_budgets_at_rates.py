"""Automatic budgets are for the rate that is taken, however it is given, and for no fewer tokens
than memory holds in any case."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vicort.runtime.assembly import check_system
from vicort.runtime.cli import run
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import read_manifest
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session

LARGE = MachineMemory(10**14)  # no share of it limits a budget
CLIP = "testsrc:seconds=2"
SYSTEMS = [name for name in known_systems() if name != "videollm-online"]  # needs its adapter


def budget(folder, system, fps=None, machine=LARGE, **request):
    manifest = read_manifest(folder)
    return check_system(system, folder, manifest, machine, MemoryRequest(**request), None, fps)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SYSTEMS), st.fractions(Fraction(1, 100), 1000, max_denominator=1001))
def test_both_ways_to_give_a_rate_have_the_same_budgets(tiny_engines, name, fps):
    system = load_system(name)
    by_option = budget(tiny_engines, system, fps)
    by_setting = budget(tiny_engines, system.with_(frames={"fps": float(fps)}))
    assert by_option.budget == by_setting.budget
    assert by_option.units == by_setting.units
    assert by_option.system.frames == system.frames  # which records and reports show


@settings(deadline=None)
@given(st.sampled_from(["distinct", "vicostream", "uniform", "full-history"]), st.integers(1, 60))
def test_memory_has_room_for_its_hours_at_the_rate_that_is_taken(tiny_engines, name, fps):
    """And for no more than a minute beside it: the chunks that are there in any case, and MB."""
    found = budget(tiny_engines, load_system(name).with_(memory={"hours": 1}), Fraction(fps))
    held = found.event(fps).seconds
    assert 3600 * 0.99 <= held <= 3600 + 120 * max(1, 10 / fps)


def test_a_session_has_the_budget_of_its_rate(tiny_engines):
    chosen = load_system("vicostream").with_(memory={"hours": 0.05})
    opened = {}
    for fps in (1, 8, None, "source"):
        with Session.open(tiny_engines, chosen, fps=fps) as session:
            opened[fps] = session.fitted.budget
            assert session.system.frames == chosen.frames
    assert opened[1] < opened[None] == opened["source"] < opened[8]
    with Session.open(tiny_engines, chosen.with_(frames={"fps": 8})) as session:
        assert session.fitted.budget == opened[8]


@pytest.mark.parametrize("fps", ["1", "8", "30000/1001"])
def test_a_dry_run_shows_the_same_for_both(tiny_engines, fps, capsys):
    def shown(*words):
        engines = ("--engine-dir", str(tiny_engines))
        assert run.main([CLIP, *engines, "--dry-run", "--set", "memory.hours=0.1", *words]) == 0
        out = capsys.readouterr().out
        return [line for line in out.splitlines() if line.startswith("  budget")]

    assert shown("--fps", fps) == shown("--set", f"frames.fps={float(Fraction(fps))}")


@pytest.mark.parametrize("name", SYSTEMS)
def test_memory_tokens_that_are_too_few_are_refused(tiny_engines, name):
    """The rule: the chunk that comes and those that it attends to, in tokens. Systems that keep a
    window alone have the memory that it needs, whatever is set."""
    model, system = read_manifest(tiny_engines).model, load_system(name)
    limited = system.with_(memory={"tokens": 1})
    if system.ingest.slides or not system.ingest.prefills:
        assert budget(tiny_engines, limited).budget == budget(tiny_engines, system).budget
        return
    with pytest.raises(ConfigError, match=r"has memory\.tokens 1, .* set memory\.tokens to") as got:
        budget(tiny_engines, limited)
    smallest = int(str(got.value).split(" to ")[1].split()[0])
    if not system.long_term:
        frames = system.chunk_frames or model.chunk_frames
        chunks = 1 + getattr(system.ingest, "chunks", 0)
        assert smallest == math.ceil(chunks * frames / 2 * model.unit_tokens)
    with pytest.raises(ConfigError, match=f"set memory.tokens to {smallest} or more"):
        budget(tiny_engines, system.with_(memory={"tokens": smallest - 1}))
    assert sum(budget(tiny_engines, system.with_(memory={"tokens": smallest})).budget) > 0
    host_mb = 200 if system.memory.host_mb is None else None
    assert budget(tiny_engines, limited, device_mb=200, host_mb=host_mb)


def test_more_memory_tokens_never_take_less(tiny_engines):
    for name in ("timechat-online", "rekv", "distinct"):
        system = load_system(name)
        found = [
            budget(tiny_engines, system.with_(memory={"tokens": tokens})).budget
            for tokens in range(1000, 100_000, 9000)
        ]
        assert found == sorted(found)
        assert sum(found[0]) < sum(found[-1])
