"""OVO-Bench's result files: scored without a model, by id."""

from __future__ import annotations

import json

import pytest
from support import evaluation_data as made

from vicort.benchmarks.evaluation import eval_run

FORWARD = ("REC", "SSR", "CRR")


def right_results(data: list[dict]) -> dict:
    """As the benchmark writes the results of a model that is always right."""
    results: dict = {"backward": [], "realtime": [], "forward": []}
    for entry in data:
        if entry["task"] in FORWARD:
            queries = [
                query
                | {"response": str(query["count"]) if "count" in query else "NY"[query["type"]]}
                for query in entry["test_info"]
            ]
            results["forward"].append(entry | {"test_info": queries})
            continue
        letter = "ABCD"[entry["gt"]]
        section = "backward" if entry["task"] in ("EPM", "ASI", "HLD") else "realtime"
        results[section].append(
            {key: entry[key] for key in ("id", "task", "video")}
            | {"response": f"It is {letter}.", "ground_truth": letter}
        )
    return results


@pytest.fixture
def data(tmp_path):
    file, _ = made.ovo_bench(tmp_path)
    return file, right_results(json.loads(file.read_text()))


def scored(tmp_path, file, *results: dict) -> dict:
    files = [
        made.write_json(tmp_path / f"results{number}.json", each)
        for number, each in enumerate(results)
    ]
    arguments = ["ovo-bench", file, "--predictions", *files, "--out", tmp_path / "out"]
    assert eval_run.main([str(each) for each in arguments]) == 0
    return json.loads((tmp_path / "out" / "report.json").read_text())


def accuracies(table: dict) -> dict[str, float]:
    return {
        heading: cell["accuracy"]
        for cells in table["predictions"].values()
        for heading, cell in cells.items()
        if heading != "Avg"
    }


def test_right_predictions_are_right_in_one_file_or_in_several(tmp_path, data):
    file, right = data
    whole = scored(tmp_path, file, right)
    assert set(accuracies(whole["accuracy"]).values()) == {1.0}
    assert whole["accuracy"]["predictions"]["overall"]["Avg"]["accuracy"] == 1
    assert whole["remarks"] == []
    parts = [{key: right[key]} for key in right]
    assert scored(tmp_path, file, *parts)["accuracy"] == whole["accuracy"]


def test_predictions_count_by_id_and_what_is_missing_is_wrong(tmp_path, data, capsys):
    file, right = data
    first = right["backward"][0]  # of task EPM
    right["backward"].append(first | {"response": "none of them"})
    right["backward"].append(first | {"id": 99})
    right["realtime"] = [each for each in right["realtime"] if each["task"] != "OCR"]
    right["realtime"][0] |= {"ground_truth": "D"}
    del right["forward"][0]["test_info"][1]
    report = scored(tmp_path, file, right)
    found = accuracies(report["accuracy"])
    wrong = {"OCR": 0.0, "REC": 0.5}
    assert found == dict.fromkeys(found, 1.0) | wrong
    task = right["realtime"][0]["id"]
    assert report["remarks"] == [
        "replies whose id came before, not counted (1): ovo/0",
        "replies with an id that the data does not have, not counted (1): ovo/99",
        f"replies with another ground truth than the data, whose counts (1): ovo/{task}",
        "questions without a reply, which are wrong (2): OCR 1, REC 1",
    ]
    assert "note: replies whose id came before" in capsys.readouterr().out


def test_replies_may_be_lists_of_one_or_nothing(tmp_path, data):
    file, right = data
    for each in right["backward"]:
        each["response"] = [each["response"]]
    for each in right["realtime"]:
        each["response"] = None
    found = accuracies(scored(tmp_path, file, right)["accuracy"])
    assert [found[task] for task in ("EPM", "ASI", "HLD")] == [1, 1, 1]
    assert [found[task] for task in ("OCR", "FPD")] == [0, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "has none of backward, realtime, forward"),
        ({"backward": [{"response": "A"}]}, "key 'id' is missing: give a whole number"),
        ({"forward": {}}, "forward is {}: give a list of objects"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, data, capsys, content, said):
    file, _ = data
    results = made.write_json(tmp_path / "results.json", content)
    arguments = ["ovo-bench", file, "--predictions", results, "--out", tmp_path / "out"]
    assert eval_run.main([str(each) for each in arguments]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_predictions_are_of_one_data_file(tmp_path, data, capsys):
    file, right = data
    results = made.write_json(tmp_path / "results.json", right)
    other = made.write_json(tmp_path / "other.json", json.loads(file.read_text()))
    arguments = ["ovo-bench", file, other, "--predictions", results, "--out", tmp_path / "out"]
    assert eval_run.main([str(each) for each in arguments]) == 2
    assert "--predictions are of one data file, not of 2" in capsys.readouterr().err
