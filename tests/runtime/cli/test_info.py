"""vicort-info and `vicort-run --dry-run`: what would be loaded, without loading it."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.engine_sets import damaged_copy

from vicort.runtime import assembly
from vicort.runtime.cli import info as cli
from vicort.runtime.cli import run
from vicort.runtime.cli.info import info, main
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.engines import engine_set
from vicort.runtime.language.choice_calibration import FittedTemperature, engines_of
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
    assert found["unit_tokens"] == model.fixed_grid.tokens
    heads = model.layers * model.kv_heads
    assert found["bytes_a_token"] == heads * 2 * model.head_dim * 4 + 12  # and its position
    assert found["seconds_a_gb"] == pytest.approx(
        1e9 / (found["bytes_a_token"] * found["unit_tokens"] * model.fps / 2)
    )
    assert found["systems"].keys() == set(known_systems())
    assert all(each["budget"]["device_mb"] > 0 for each in found["systems"].values())


def test_its_text_has_a_line_for_each_system(tiny_engines, capsys):
    assert main([str(tiny_engines)]) == 0
    out = capsys.readouterr().out
    assert "  tokens      16 for two frames, 16 a second, before dropping\n" in out
    assert all(f"\n  {name:17} --memory " in out for name in known_systems())


def test_sizes_that_follow_the_source_are_told(tiny_engines, tmp_path, capsys):
    model = read_manifest(tiny_engines).model.model_dump()
    model |= {"fixed_size": None, "max_pixels": 308 * 308}
    damaged_copy(tiny_engines, tmp_path / "set", model=model)
    assert main([str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert (
        "  frames      up to 94864 pixels in the shape of the source, 392x224 at 16:9, 2 a second, "
        "chunks of 16\n" in out
    )
    assert "  tokens      up to 121 for two frames, 121 a second, before dropping\n" in out
    assert main([str(tmp_path / "set"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frame"], found["max_pixels"], found["unit_tokens"]) == (None, 94864, 121)
    found = info(tiny_engines, [])
    assert (found.frame, found.frame_size, found.max_pixels) == ((112, 112), "112x112", 112**2)


def test_the_temperature_of_choices_is_shown(tiny_engines, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(tiny_engines, folder)
    stored = FittedTemperature(
        engines=engines_of(folder), temperature=1.625, questions=812, ece_before=0.04, ece_after=0.0
    )
    stored.store(folder)
    assert main([str(folder)]) == 0
    assert (
        "  choices     at temperature 1.62, fitted on 812 questions; calibration error of others "
        "0.040, then 0.000\n"
    ) in capsys.readouterr().out
    assert main([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert found == {"temperature": 1.625, "questions": 812, "ece_before": 0.04, "ece_after": 0.0}
    (folder / "calibration.json").write_text("{")
    assert main([str(folder)]) == 2
    assert "calibration.json: it is damaged" in capsys.readouterr().err


def test_a_machine_on_which_nothing_fits_is_said(tiny_engines, monkeypatch):
    monkeypatch.setattr(cli, "host_memory", lambda: 20_000_000)
    found = info(tiny_engines, ["vicostream", "simplestream"])
    assert found.machine == MachineMemory(20_000_000)
    assert found.missing == "weights and a margin of 1.5 GB are 1.5 GB, this machine has 0.0 GB"
    assert "is too small for a chunk of 16 frames" in found.systems["vicostream"].note
    assert "is too small for a chunk of 16 frames" in found.systems["simplestream"].note


def test_a_backend_that_is_not_installed_is_said(tiny_engines, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert info(tiny_engines, ()).missing == "onnxruntime is not installed"


def test_a_folder_without_engines_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) != 0
    err = capsys.readouterr().err
    assert err.startswith(f"vicort-info: no folder {tmp_path / 'none'}: ")
    assert err.count("\n") == 1
    assert "--engine-dir" not in err  # an option that vicort-info does not have


def test_tiny_is_the_embedded_models_set(tiny_engines, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "find_engine_dir", lambda model: tiny_engines)
    assert main(["tiny"]) == 0
    assert capsys.readouterr().out.startswith(f"{tiny_engines}\n")
    monkeypatch.setattr(cli, "find_engine_dir", lambda model: None)
    assert main(["tiny"]) == 2
    assert "no engines of the tiny model are built: run `vicort-build tiny`" in (
        capsys.readouterr().err
    )
    (tmp_path / "tiny").mkdir()  # a folder of that name is what is meant
    assert main(["tiny"]) == 2
    assert "tiny has neither manifest.json nor config.json" in capsys.readouterr().err


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
    assert "  budget      --memory 13MB --host-memory 0MB, room for 4 s\n" in out
    assert (
        "  budget      --memory 50MB --host-memory 7MB, "
        in dry_run("--memory", "50MB", "--host-memory", "7MB")[1]
    )


def test_it_refuses_what_a_run_would_refuse(dry_run):
    code, out, err = dry_run("--memory", "1MB")
    assert (code, out) == (2, "")
    assert err.startswith("vicort-run: a device budget of 1 MB is too small for a chunk of 16")


def test_what_is_shown_is_what_a_session_gets(tiny_engines, monkeypatch):
    shown = info(tiny_engines, known_systems()).systems
    monkeypatch.undo()
    for name in ("vicostream", "livevlm"):
        with Session.open(tiny_engines, name) as session:
            assert session.fitted.event(2.0) == shown[name].budget


def test_systems_that_do_not_run_on_a_gpus_engines_are_said(tiny_engines, tmp_path, monkeypatch):
    manifest = read_manifest(tiny_engines).model_copy(update={"backend": "tensorrt", "graphs": {}})
    monkeypatch.setattr(cli, "read_manifest", lambda folder: manifest)
    monkeypatch.setattr(cli, "pool_dtype", lambda manifest: np.dtype(np.float32))
    monkeypatch.setattr(assembly, "pool_dtype", lambda manifest: np.dtype(np.float32))
    found = info(tiny_engines, known_systems())
    assert "GPU" in found.missing or "driver" in found.missing or "TensorRT" in found.missing
    assert "runs on CPU engines only so far" in found.systems["livevlm"].note
    assert "TensorRT sets hold none" in found.systems["codecflow"].note
    assert found.systems["vicostream"].budget


def test_int8_pages_are_said_and_long_term_memory_over_them_is_refused(tiny_engines, monkeypatch):
    manifest = read_manifest(tiny_engines).model_copy(update={"kv": "int8"})
    monkeypatch.setattr(cli, "read_manifest", lambda folder: manifest)
    for module in (cli, assembly):
        monkeypatch.setattr(module, "pool_dtype", lambda manifest: np.dtype(np.int8))
    found, model = info(tiny_engines, known_systems()), manifest.model
    assert found.kv == "int8"
    assert "onnxruntime, fp32, keys and values in int8, for" in "\n".join(cli.lines(found))
    heads = model.layers * model.kv_heads
    assert found.bytes_a_token == heads * 2 * (model.head_dim + 4) + 12
    assert found.systems["vicostream"].budget
    for name in ("livevlm", "resv", "freekv", "rekv"):
        assert "built without --kv int8" in found.systems[name].note
        assert "\n" not in found.systems[name].note


def test_a_reader_that_goes_away_is_no_error(tiny_engines):
    words = [sys.executable, "-m", "vicort.runtime.cli.info", str(tiny_engines), "--json"]
    command = f"{shlex.join(words)} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")
