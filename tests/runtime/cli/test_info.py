"""vicort-info and `vicort-run --dry-run`: what would be loaded, without loading it."""

import json

import pytest

from vicort.runtime.cli import info as cli
from vicort.runtime.cli import run
from vicort.runtime.cli.info import info, main
from vicort.runtime.devices.machine import MachineMemory
from vicort.runtime.engines import engine_set
from vicort.runtime.manifest import read_manifest
from vicort.runtime.policies.system import known_systems
from vicort.runtime.session import Session


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(engine_set, "_load", lambda *_: pytest.fail("an engine was loaded"))


def test_it_tells_the_sizes_of_an_engine_set(tiny_engines, capsys):
    assert main([str(tiny_engines), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = read_manifest(tiny_engines).model
    assert (found["model"], found["backend"], found["precision"]) == ("tiny", "onnxruntime", "fp32")
    assert found["bytes_on_disk"] == {
        path.name: path.stat().st_size
        for path in tiny_engines.iterdir()
        if path.name != "manifest.json"
    }
    assert found["unit_tokens"] == model.grid_height * model.grid_width
    heads = model.layers * model.kv_heads
    assert found["bytes_a_token"] == heads * 2 * model.head_dim * 4 + 12  # and its position
    assert found["seconds_a_gb"] == pytest.approx(
        1e9 / (found["bytes_a_token"] * found["unit_tokens"] * model.fps / 2)
    )
    assert found["systems"].keys() == set(known_systems())
    assert all(event["device_mb"] > 0 for event in found["systems"].values())


def test_its_text_has_a_line_for_each_system(tiny_engines, capsys):
    assert main([str(tiny_engines)]) == 0
    out = capsys.readouterr().out
    assert "  tokens      16 for two frames, 16 a second, before dropping\n" in out
    assert all(f"\n  {name:17} --memory " in out for name in known_systems())


def test_a_machine_on_which_nothing_fits_is_said(tiny_engines, monkeypatch):
    monkeypatch.setattr(cli, "host_memory", lambda: 20_000_000)
    found = info(tiny_engines, ["vicostream", "simplestream"])
    assert found.machine == MachineMemory(20_000_000)
    assert found.missing == "weights and a margin of 1.5 GB are 1.5 GB, this machine has 0.0 GB"
    assert "is too small for one chunk of 16 frames" in found.systems["vicostream"]
    assert "is too small for one chunk of 16 frames" in found.systems["simplestream"]


def test_a_backend_that_is_not_installed_is_said(tiny_engines, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert info(tiny_engines, ()).missing == "onnxruntime is not installed"


def test_a_folder_without_engines_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) != 0
    assert capsys.readouterr().err.startswith(f"vicort-info: no engine folder {tmp_path / 'none'}")


@pytest.fixture
def dry_run(tiny_engines, capsys):
    def go(*arguments):
        engines = ("--engine-dir", str(tiny_engines))
        code = run.main(["nowhere.mp4", *engines, "--dry-run", *arguments])
        return code, *capsys.readouterr()

    return go


def test_a_dry_run_tells_the_budget_and_opens_nothing(dry_run):
    code, out, err = dry_run("--system", "simplestream")
    assert (code, err) == (0, "")
    assert "  system      simplestream\n" in out
    assert "  budget      --memory 9MB, room for 17 s\n" in out
    assert (
        "  budget      --memory 50MB --host-memory 7MB, "
        in dry_run("--memory", "50MB", "--host-memory", "7MB")[1]
    )


def test_it_refuses_what_a_run_would_refuse(dry_run):
    code, out, err = dry_run("--memory", "1MB")
    assert (code, out) == (2, "")
    assert err.startswith("vicort-run: a device budget of 1 MB is too small for one chunk of 16")


def test_what_is_shown_is_what_a_session_gets(tiny_engines, monkeypatch):
    shown = info(tiny_engines, known_systems()).systems
    monkeypatch.undo()
    for name in ("vicostream", "livevlm"):
        with Session.open(tiny_engines, name) as session:
            assert session.fitted.event == shown[name]
