"""--set and --show-system: a system with other values, and the file that says so."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.cli import run
from vicort.runtime.cli.presets import PRESETS
from vicort.runtime.policies.system import MAX_NAME_LENGTH, known_systems, load_system, parse_system

SYSTEMS = known_systems()


def leaves(content, path=()):
    """(keys, value) of every value of a file."""
    if not isinstance(content, dict):
        yield path, content
        return
    for key, inner in content.items():
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_read_back_as_it_is_shown(name):
    system = load_system(name)
    assert parse_system(system.to_yaml(), "shown") == system
    assert yaml.safe_load(system.to_yaml()) == system.to_content()


@pytest.mark.parametrize("name", SYSTEMS)
def test_setting_each_value_to_what_it_is_changes_the_name_alone(name):
    content = load_system(name).to_content()
    settings = [f"{'.'.join(keys)}={json.dumps(value)}" for keys, value in leaves(content)]
    assert len(settings) > 10
    assert load_system(name).with_settings(settings).to_content() == content
    for setting in settings:
        changed = load_system(name).with_settings([setting]).to_content()
        assert {**changed, "name": name} == content


@given(st.sampled_from(SYSTEMS), st.floats(0.1, 1e6, allow_nan=False))
def test_what_is_set_is_there_and_all_else_stays(name, hours):
    before = dict(leaves(load_system(name).to_content()))
    after = dict(leaves(load_system(name).with_settings([f"memory.hours={hours!r}"]).to_content()))
    assert after == before | {("memory", "hours"): hours, ("name",): f"{name} (changed)"}


def test_another_policy_brings_its_own_parameters_in_any_order():
    for settings in (
        ["retrieval.policy=even-units", "retrieval.units=5"],
        ["retrieval.units=5", "retrieval.policy=even-units"],
        ["retrieval={policy: even-units, units: 5}"],
    ):
        retrieval = load_system("distinct").with_settings(settings).to_content()["retrieval"]
        assert (retrieval["policy"], retrieval["units"]) == ("even-units", 5)
        assert "relevance" not in retrieval


def test_a_long_name_stays_within_its_limit():
    system = load_system("distinct").with_(name="n" * MAX_NAME_LENGTH)
    assert len(system.with_settings(["drop.threshold=0.5"]).name) == MAX_NAME_LENGTH


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("drop.threshold", "give a key of"),
        ("=3", "give a key of"),
        ("drop..threshold=3", "give a key of"),
        ("drop.threshold=high", "drop.threshold is 'high'"),
        ("drop.threshold=2", "drop.threshold is 2"),
        ("drop.treshold=0.5", "unknown key 'treshold'"),
        ("memory.huors=1", "unknown key 'huors'"),
        ("dorp.threshold=0.5", "unknown key 'dorp'"),
        ("name.first=x", "has no keys"),
        ("drop.policy=none-such", "is unknown: choose one of"),
        ("memory.device_mb=", "write auto"),
        ("drop=", "key 'drop' is missing"),
        ("drop.threshold=[", "is not YAML"),
        ("drop.threshold=&a [*a]", "is not YAML"),
        ("chunk.frames=3", "chunk.frames is 3"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(capsys, setting, said):
    assert run.main(["clip.mp4", "--set", setting]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vicort-run: --set {setting}")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_what_is_shown_is_a_file_for_system(capsys, tmp_path, preset):
    options = ["--set", "drop.threshold=0.4", "--memory", "2GB"]
    options += ["--preset", preset] if preset else []
    assert run.main(["--show-system", *options]) == 0
    shown = capsys.readouterr().out
    path = tmp_path / "shown.yaml"
    path.write_text(shown)
    assert run.main(["clip.mp4", "--system", str(path), "--show-system"]) == 0
    again = capsys.readouterr().out
    assert yaml.safe_load(again) == yaml.safe_load(shown)
    content = yaml.safe_load(shown)
    assert (content["drop"]["threshold"], content["memory"]["device_mb"]) == (0.4, 2000)


def test_values_of_a_section_that_is_left_out_can_be_set_one_by_one():
    settings = ["retrieval.again.units=96", "retrieval.again.below=0.9"]
    changed = load_system("distinct").with_settings(settings)
    assert changed.retrieval.again.model_dump() == {"units": 96, "below": 0.9}
