"""--preset: what it sets, and that an option that is given wins."""

from fractions import Fraction
from pathlib import Path

import pytest

from vicort.runtime.cli import run
from vicort.runtime.cli.arguments import parse_options
from vicort.runtime.cli.presets import PRESETS
from vicort.runtime.cli.run_options import Options
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import read_manifest
from vicort.runtime.memory.budget import SHARE, MemoryRequest, fit_budget
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

CLIP = str(Path(__file__).parents[2] / "fixtures" / "shapes.mp4")
DOCS = Path(__file__).parents[3] / "docs" / "systems.md"


def options(*words):
    return parse_options(["clip.mp4", *words])


def test_without_a_preset_everything_is_as_it_was():
    chosen = options()
    assert (chosen.system, chosen.fps, chosen.memory_share) == (Options.system, None, SHARE)
    assert chosen.preset is None


def test_a_preset_changes_the_file_of_its_system():
    fast = options("--preset", "fast")
    plain = load_system("distinct")
    assert fast.fps == 1
    assert fast.memory_share == SHARE / 2
    system = fast.chosen_system
    assert system.name == "distinct (preset fast)"
    assert (system.drop.threshold, system.retrieval.units) == (0.5, 24)
    assert (system.ingest, system.memory) == (plain.ingest, plain.memory)
    assert system.retrieval.relevance == plain.retrieval.relevance


def test_the_presets_are_ordered():
    """Each step keeps more tokens, reads more of them, and may take more memory."""
    fast, balanced, best = (options("--preset", name) for name in ("fast", "balanced", "best"))
    assert list(PRESETS) == ["fast", "balanced", "best"]
    for less, more in ((fast, balanced), (balanced, best)):
        one, other = less.chosen_system, more.chosen_system
        assert one.drop.threshold < other.drop.threshold
        assert one.retrieval.units < other.retrieval.units
        assert less.memory_share < more.memory_share


def test_options_win_over_a_preset():
    chosen = options("--preset", "fast", "--fps", "5")
    assert chosen.fps == Fraction(5)
    assert chosen.chosen_system.name == "distinct (preset fast)"
    chosen = options("--preset", "best", "--system", "simplestream")
    assert chosen.chosen_system == load_system("simplestream")
    assert options("--preset", "best", "--memory", "50MB").device_mb == 50


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("setting", ["frames.fps=4", "frames={fps: 4}", "frames.fps=0.5"])
def test_a_rate_that_is_set_wins_over_a_preset(preset, setting):
    chosen = options("--preset", preset, "--set", setting)
    assert chosen.fps is None
    assert chosen.chosen_system.frames.fps == (0.5 if "0.5" in setting else 4)
    assert "given instead: --set frames.fps" in chosen.preset


def test_other_settings_leave_the_presets_rate():
    assert options("--preset", "fast", "--set", "frames.repeat=true").fps == 1
    assert options("--preset", "fast", "--system", "uniform").fps == 1


def test_the_rate_that_a_system_names_wins_over_a_preset():
    chosen = options("--preset", "fast", "--system", "simplestream")
    assert chosen.fps is None
    assert "given instead: frames.fps of simplestream, --system" in chosen.preset


@pytest.mark.parametrize("preset", [(), ("--preset", "fast")])
@pytest.mark.parametrize(
    ("fps", "setting"),
    [("3", "frames.fps=4"), ("source", "frames.fps=4"), ("3", "frames.fps="), ("3", "frames={}")],
)
def test_two_rates_are_refused(fps, setting, preset):
    words = (*preset, "--fps", fps, "--set", setting)
    if setting == "frames={}":  # which says nothing about the rate
        assert options(*words).fps == 3
        return
    value = setting.partition("=")[2]
    with pytest.raises(ConfigError, match=f"--fps {fps} and --set frames.fps={value} are two"):
        options(*words)


@pytest.mark.parametrize(("fps", "value"), [("4", "4"), ("29.97", "29.97"), ("5/2", "2.5")])
def test_the_same_rate_twice_is_one(fps, value):
    assert options("--fps", fps, "--set", f"frames.fps={value}").fps == Fraction(fps)


@pytest.mark.parametrize("built", [True, False])
def test_a_dry_run_shows_what_a_preset_sets(built, tiny_engines, capsys, monkeypatch):
    engines = ("--engine-dir", str(tiny_engines)) if built else ()
    monkeypatch.setattr(run, "find_engine_dir", lambda model: None)

    def shown(*words):
        assert run.main([CLIP, *engines, "--dry-run", *words]) == 0
        out = capsys.readouterr().out
        return [line.strip() for line in out.splitlines() if line.startswith("  preset")]

    assert shown() == []
    assert shown("--preset", "fast") == [
        "preset      fast: --fps 1; system distinct with drop.threshold 0.5, retrieval.units 24; "
        "at most 0.125 of the machine's memory"
    ]
    assert shown("--preset", "best", "--system", "uniform", "--fps", "2") == [
        "preset      best: at most 0.5 of the machine's memory; given instead: --fps, --system"
    ]


def test_a_share_of_memory_is_a_share(tiny_engines):
    model = read_manifest(tiny_engines).model
    machine = MachineMemory(200_000_000)
    budgets = [
        sum(
            fit_budget(
                load_system("distinct"), model, "float32", 10, machine, MemoryRequest(share=share)
            ).budget
        )
        for share in (1 / 8, 1 / 4, 1 / 2)
    ]
    for share, budget in zip((25, 50, 100), budgets, strict=True):
        assert share - 2 <= budget <= share


def test_the_share_is_one_of_the_hosts_memory_too(tiny_engines):
    """That of a GPU's host, which is another machine memory than the device's."""
    model = read_manifest(tiny_engines).model
    machine = MachineMemory(400_000_000, device=200_000_000)
    for share in (1 / 8, 1 / 4, 1 / 2):
        request = MemoryRequest(share=share)
        budget = fit_budget(load_system("distinct"), model, "float32", 10, machine, request).budget
        assert budget.device_mb == int(200 * share)
        assert budget.host_mb == int(400 * share)


def test_a_session_gets_what_the_preset_says(monkeypatch, tiny_engines, capsys):
    seen = {}
    opened = Session.open.__func__

    def spied(cls, engines, system, **options):
        seen.update(options, system=system)
        return opened(cls, engines, system, **options)

    monkeypatch.setattr(run.Session, "open", classmethod(spied))
    words = ("--ask", "what is there now?", "--preset", "fast")
    assert run.main([CLIP, "--engine-dir", str(tiny_engines), *words]) == 0
    assert seen["fps"] == 1
    assert seen["memory"].share == SHARE / 2
    assert seen["system"].retrieval.units == 24
    assert "distinct (preset fast): 23 frames in " in capsys.readouterr().out


def test_an_unknown_preset_is_one_line(capsys):
    assert run.main([CLIP, "--preset", "turbo"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(name in err for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_in_the_documents_says_the_same(name):
    (row,) = (
        line for line in DOCS.read_text().splitlines() if line.startswith(f"| `--preset {name}`")
    )
    preset = PRESETS[name]
    system = preset.load(name)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells == [
        f"{preset.fps} a second" if preset.fps else "the model's rate",
        f"{system.drop.threshold:g}",
        f"{system.ingest.chunks}",
        f"{system.retrieval.units}",
        f"{Fraction(preset.memory_share)}",
    ]
