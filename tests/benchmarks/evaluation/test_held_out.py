"""vicort-eval shapestream --held-out: the world in looks that training never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from vicort.benchmarks.evaluation import eval_run, held_out
from vicort.benchmarks.evaluation.eval_arguments import parse_options
from vicort.benchmarks.evaluation.score_tables import OVERALL
from vicort.export.tiny import evaluation_files
from vicort.export.tiny.evaluation_files import (
    HELD_OUT,
    SETTINGS,
    evaluation_stream,
    questions_about_now,
    questions_at_end,
)
from vicort.export.tiny.world_questions import KINDS, named
from vicort.runtime.errors import ConfigError

FAST = {"sizes": ((128, 96),), "fps": 4, "bitrate": 120_000}


@pytest.fixture
def few_settings(monkeypatch):
    """Two kinds of file with little to draw."""
    named = {setting.name: setting for setting in SETTINGS}
    few = tuple(
        replace(named[name], objects=(2,), changes={"background": "stripes"}, **FAST)
        for name in ("gaps", "stripes")
    )
    monkeypatch.setattr(evaluation_files, "SETTINGS", few)


def evaluate(engines, tmp_path, *arguments) -> int:
    common = ("--engine-dir", engines, "--out", tmp_path / "out", "--cache", tmp_path / "files")
    return eval_run.main(["shapestream", "--held-out", *map(str, (*arguments, *common))])


def test_one_command_draws_files_asks_and_states_intervals(
    tiny_engines, tmp_path, few_settings, capsys
):
    assert evaluate(tiny_engines, tmp_path, "--streams", "2") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["conditions"]["benchmark"].endswith("held out from training")
    (accuracy,) = report["accuracy"].values()
    together = accuracy["held-out looks together"]["names"]
    assert set(accuracy) == {"held-out looks", "held-out looks together", "gaps", "stripes"}
    names = accuracy["held-out looks"]["names, gaps"]
    assert names["asked"] == 2 * 2 * 2  # two streams of two things, two questions about each
    assert together["asked"] == 2 * names["asked"]
    assert names["low"] <= names["accuracy"] <= names["high"]
    assert accuracy["gaps"]["color"]["asked"] == accuracy["gaps"]["shape"]["asked"] == 4
    assert accuracy["held-out looks"]["first"]["asked"] == 4  # of both kinds of file
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  95 %") and "–" in line for line in lines)
    made = sorted((tmp_path / "files").iterdir())
    assert len(made) == 4

    times = [path.stat().st_mtime_ns for path in made]
    assert evaluate(tiny_engines, tmp_path, "--streams", "2") == 0
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "files").iterdir())] == times
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["accuracy"] == report["accuracy"]


@pytest.mark.slow
def test_another_process_finds_the_files():
    names = [held_out.file_name(setting, HELD_OUT) for setting in SETTINGS]
    assert len(set(names)) == len(SETTINGS)
    code = (
        "from vicort.benchmarks.evaluation.held_out import file_name\n"
        "from vicort.export.tiny.evaluation_files import HELD_OUT, SETTINGS\n"
        "print(*(file_name(setting, HELD_OUT) for setting in SETTINGS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == names


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--ages", "8"], "--ages"),
        (["--age-in", "chunks"], "--age-in"),
        (["--streams", "0"], "--streams 0"),
    ],
)
def test_what_cannot_be_combined_is_refused(tiny_engines, tmp_path, capsys, wrong, named):
    assert evaluate(tiny_engines, tmp_path, *wrong) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_the_default_system_runs_and_it_has_a_folder_of_its_own():
    options = parse_options(["shapestream", "--held-out"])
    assert len(options.systems) == 1
    assert options.streams == held_out.STREAMS
    assert options.out != parse_options(["shapestream"]).out
    with pytest.raises(ConfigError, match="--age-in"):
        parse_options(["shapestream", "--held-out", "--age-in", "units"])


def test_every_figure_has_questions_and_at_least_two_hundred():
    asked: dict[str, int] = {}
    for setting in SETTINGS:
        for number in range(held_out.STREAMS):
            stream, _, _ = evaluation_stream(setting, HELD_OUT + number)
            for item in held_out._items(setting.name, number, stream):
                asked[item.task] = asked.get(item.task, 0) + 1
    for figure in held_out.FIGURES:
        count = sum(asked[f"{s}/{kind}"] for s in figure.settings for kind in figure.kinds
                    if f"{s}/{kind}" in asked)  # fmt: skip
        assert count >= 200, (figure, count)
    assert OVERALL not in {figure.name for figure in held_out.FIGURES}


def test_what_is_there_now_is_asked_while_it_is_there():
    for setting in SETTINGS:
        for seed in range(HELD_OUT, HELD_OUT + 7):
            stream, _, _ = evaluation_stream(setting, seed)
            for at, asked in questions_about_now(stream):
                steps = [at - 1.1 + 0.1 * step for step in range(12)]
                assert {named(*stream.at(max(0.0, time))) for time in steps} == {asked.answer}
            kinds = {asked.kind for asked in questions_at_end(stream)}
            assert kinds <= set(KINDS) - {"now"}


def test_held_out_files_are_of_families_that_training_never_draws():
    from vicort.export.tiny.backgrounds import BACKGROUNDS, HELD_OUT_BACKGROUNDS
    from vicort.export.tiny.looks import FINISHES, PALETTES

    for setting in SETTINGS[1:]:
        for seed in range(HELD_OUT, HELD_OUT + 20):
            _, look, _ = evaluation_stream(setting, seed)
            assert look.background in HELD_OUT_BACKGROUNDS
            assert look.finish not in FINISHES
            assert look.palette in PALETTES
    assert not set(HELD_OUT_BACKGROUNDS) & set(BACKGROUNDS) - {"photo"}


def test_settings_share_no_stream_and_no_look():
    drawn = [evaluation_stream(setting, HELD_OUT + k) for setting in SETTINGS for k in range(7)]
    assert len({stream.seed for stream, _, _ in drawn}) == len(drawn)
    assert len({repr(look) for _, look, _ in drawn}) == len(drawn)
