"""What vicort-eval refuses: one line, which names the value, and a code that is not 0."""

import copy
import json
from fractions import Fraction
from functools import partial

import pytest
from support import evaluation_data as made

from vicort.benchmarks.evaluation import etbench, eval_run, ovo_bench, streamingbench
from vicort.benchmarks.evaluation.event_rules import spans_of
from vicort.benchmarks.evaluation.items import Item, Reply
from vicort.benchmarks.evaluation.rules import credit_of
from vicort.runtime.errors import ConfigError

NUMBERS = ["1e300", "-1e300", "1e999", "NaN", "9" * 400, '"' + "9" * 5000 + '"', '"9999999:99:99"']
NUMBERS += ['"40:00:00"', '"٣"', '"00:00:٣"', "true", "null", '"²"']


def refused(capsys, *words):
    assert eval_run.main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vicort-eval: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def ovo(tmp_path):
    return made.ovo_bench(tmp_path)[0]


def results(folder, **sections):
    return made.write_json(folder / "results.json", sections)


def test_an_option_of_other_benchmarks_is_named(capsys):
    said = refused(capsys, "shapestream", "--sampling", "own")
    assert "--sampling is an option of streamingbench, ovo-bench, rvs" in said
    assert "leave it out" in said
    assert "did you mean" not in said


@pytest.mark.parametrize(
    "option",
    [
        ("--system", "uniform"),
        ("--engine-dir", "engines"),
        ("--protocol", "restart"),
        ("--fps", "1"),
        ("--sampling", "own"),
        ("--max-tokens", "9"),
        ("--limit", "1"),
        ("--threads", "2"),
        ("--videos", "."),
        ("--context", "5"),
        ("--strict",),
    ],
)
def test_predictions_refuse_what_is_about_a_run(option, ovo, tmp_path, capsys):
    said = refused(capsys, "ovo-bench", ovo, "--predictions", tmp_path / "results.json", *option)
    assert f"no model runs, so {option[0]} has no meaning" in said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"realtime": [{"id": 987654, "response": "A"}]}, "none of its 1 replies is to a question"),
        ({"realtime": [], "forward": []}, "no reply is in there"),
        ({"other": []}, "has none of backward, realtime, forward"),
        ([], "has none of backward, realtime, forward"),
    ],
)
def test_predictions_without_a_reply_that_counts_are_refused(
    content, why, ovo, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = made.write_json(tmp_path / "results.json", content)
    said = refused(capsys, "ovo-bench", ovo, "--predictions", file)
    assert why in said
    assert "results.json" in said
    assert not (tmp_path / "build").exists()


def test_a_file_of_predictions_that_is_not_there_is_named_as_one(ovo, tmp_path, capsys):
    said = refused(capsys, "ovo-bench", ovo, "--predictions", tmp_path / "none.json")
    assert "none.json" in said
    assert "name the benchmark's result files" in said


def places(content, path=()):
    """The path of every value that holds no others."""
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield from places(content[key], (*path, key))
    else:
        yield path


def kinds_of(content):
    """One path for each kind of value: entries of a list are alike."""
    found = {}
    for path in places(content):
        found.setdefault(tuple(key for key in path if isinstance(key, str)), path)
    return found.values()


def load_by(load, folder, path):
    return load([path], [folder])


@pytest.mark.parametrize("benchmark", ["ovo", "etbench", "streamingbench"])
def test_numbers_that_are_none_are_refused_or_taken_but_never_fail(benchmark, tmp_path):
    """And none makes a question to be asked a million times."""
    if benchmark == "streamingbench":
        files, _ = made.streamingbench(tmp_path)
        (file,) = (each for each in files if "ground_truth_time_stamp" in each.read_text())
        load = partial(load_by, streamingbench.load, tmp_path)
    elif benchmark == "ovo":
        file, _ = made.ovo_bench(tmp_path)
        load = partial(load_by, ovo_bench.load, tmp_path)
    else:
        file, _ = made.etbench(tmp_path)
        load = partial(load_by, partial(etbench.load, sources=None), tmp_path)
    content, refusals = json.loads(file.read_text()), []
    out = tmp_path / "changed" / file.name
    out.parent.mkdir()
    for path in kinds_of(content):
        for number in NUMBERS:
            changed = copy.deepcopy(content)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = "@"
            out.write_text(json.dumps(changed).replace('"@"', number), encoding="utf-8")
            try:
                dataset = load(out)
            except ConfigError as error:
                refusals.append(str(error))
            else:
                assert sum(len(item.times) for item in dataset.items.values()) < 100_000
    assert len(refusals) > 20
    assert not any("\n" in each for each in refusals)


@pytest.mark.parametrize("task", ["tvg", "epm", "tal", "evs", "vhd", "tem"])
@pytest.mark.parametrize("number", ["9" * 400, "1" + "0" * 300 + ".5"])
def test_a_reply_with_a_huge_number_is_only_wrong(task, number):
    rule = (etbench.GROUNDING | etbench.COMPLEX)[task]
    truth = "[3, 5]" if task in ("tvg", "epm") else "[[3, 5]]"
    item = Item("a", task, rule, truth, "when?", (Fraction(1),))
    reply = Reply("a", Fraction(1), f"From {number} - {number} seconds")
    assert credit_of(item, [reply]) == 0
    assert spans_of("2.5 - 4.8") == [(2.5, 4.8)]
