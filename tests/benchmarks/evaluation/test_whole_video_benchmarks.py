"""StreamBench v0.3, E.T. Bench and Video-MME, each from its own file to its table."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from support import evaluation_data as made
from support.scripted_session import scripted

from vicort.benchmarks.evaluation import etbench, eval_run, streambench, videomme
from vicort.benchmarks.evaluation.eval_arguments import EvalOptions, parse_options
from vicort.benchmarks.evaluation.items import Dataset
from vicort.benchmarks.evaluation.judge import CommandJudge, ExactJudge
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.benchmarks.evaluation.score_tables import make_table, score_all
from vicort.runtime.errors import ConfigError


def table_of(dataset: Dataset, script, tmp_path, scoring=None) -> dict:
    """By group and heading: (accuracy, questions), of a session that follows a script."""
    ledger = Ledger(tmp_path / "answers.jsonl", {})
    sessions = {"one": scripted(script)}
    assert eval_run.watch_all(dataset, EvalOptions(dataset.name), sessions, ledger) == {}
    replies = [reply for watched in ledger.watched.values() for reply in watched.replies]
    table = make_table(dataset, score_all(dataset.items, replies, ExactJudge(), scoring))
    return {
        title: {heading: (round(cell.accuracy, 4), cell.asked) for heading, cell in cells.items()}
        for title, cells in table.items()
    }


def test_streambench_is_asked_at_its_breakpoints(tmp_path):
    file, stream = made.streambench(tmp_path)
    dataset = streambench.load([file], [tmp_path])
    (video,) = dataset.videos
    assert video.path == tmp_path / "Ego" / "Ego" / "film.mp4"
    assert [item.times for item in video.items] == [(made.after(stream, n),) for n in range(3)]
    assert [item.task for item in video.items] == ["OS", "LM", "OS"]
    question = f"what color was the {stream.things[1].shape}?"
    assert video.items[1].text == (
        "You are an advanced streaming video understanding AI assistant. You are given frames "
        "decoded from the beginning of a video up to the current timestamp and a question about "
        "the video.\n"
        "Answer the question in a short, factual sentence based on the visual evidence and useful "
        "commonsense when needed.\n"
        f"Question type: LM\n\nQuestion: {question}\n\nAnswer:"
    )
    assert dataset.remarks == ("videos left out, as ViCoStream leaves them out: YxXrLCWFxTg.mp4",)
    colors = {item.text: item.truth for item in video.items}
    answers = lambda question, seen: colors[question.text] if "LM" in question.text else "pink"
    assert table_of(dataset, answers, tmp_path) == {
        "StreamBench v0.3": {"LM": (1.0, 1), "OS": (0.0, 2), "Avg": (0.3333, 3)}
    }


def test_a_judge_gets_the_question_without_its_prompt(tmp_path):
    file, _ = made.streambench(tmp_path)
    (video,) = streambench.load([file], [tmp_path]).videos
    program = tmp_path / "judge.py"
    program.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    right = json.loads(line)['question'].startswith('what color')\n"
        "    print(json.dumps({'pred': 'yes' if right else 'no', 'score': 5}))\n"
    )
    (verdict,) = CommandJudge(shlex.join([sys.executable, str(program)]))([(video.items[0], "red")])
    assert verdict.yes


def test_etbench_is_asked_when_the_video_is_over(tmp_path):
    file, stream = made.etbench(tmp_path)
    dataset = etbench.load([file], [tmp_path])
    (video,) = dataset.videos
    assert video.path == tmp_path / "videos" / "shapes" / "film.mp4"
    assert {item.times for item in video.items} == {(stream.duration,)}
    assert video.items[0].text == "When was it (tvg)? Say 'start - end'."
    assert dataset.remarks == (
        "entries of tasks that are not scored here, as their scores need a sentence model or "
        "caption metrics: dvc (1)",
    )

    def first_half(question, seen):
        """The first thing's first half, whatever is asked: it has the overlaps 0.1, 0.3 and 0.5."""
        start, end = stream.things[0].start, stream.things[0].end
        return f"{start} - {(start + end) / 2} seconds"

    start, end = stream.things[0].start, stream.things[0].end
    in_common = len(range(round(start), round((start + end) / 2)))
    right = sum(len(range(round(each.start), round(each.end))) for each in stream.things[:2])
    table = table_of(dataset, first_half, tmp_path)
    assert table["Grounding"]["tvg/charades_sta"] == (0.75, 1)
    assert table["Grounding"]["epm/shapes"] == (0.0, 1)
    # of three spans one is found at three thresholds: recall 1/3, precision 1
    assert table["Grounding"]["tal/shapes"] == (0.375, 1)
    assert table["Grounding"]["evs/shapes"] == (round(2 * in_common / (right + in_common), 4), 1)
    assert table["Grounding"]["vhd/shapes"] == (1.0, 1)
    assert table["Complex"] == {"tem/shapes": (0.0, 1), "Avg": (0.0, 1)}
    mean = sum(cell[0] for name, cell in table["Grounding"].items() if name != "Avg") / 5
    assert table["Grounding"]["Avg"] == (pytest.approx(mean, abs=1e-4), 5)


def test_etbench_may_be_asked_about_one_source(tmp_path):
    file, _ = made.etbench(tmp_path)
    (item,) = etbench.load([file], [tmp_path], ("charades_sta",)).items.values()
    assert item.task == "tvg/charades_sta"
    with pytest.raises(ConfigError, match=r"--source none: .* has charades_sta, shapes"):
        etbench.load([file], [tmp_path], ("none",))
    options = parse_options(["etbench", "x.json", "--source", "a", "--source", "b"])
    assert (options.sources, options.fps) == (("a", "b"), 1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[0].update(tgt=[[1, 2], [3, 4]]), "give [start, end]"),
        (lambda data: data[2].update(tgt=[1, 2]), "give a list of [start, end]"),
        (lambda data: data[3].update(tgt=[]), "give a list of [start, end]"),
        (lambda data: data[1].update(task="new"), "'task' is 'new': give one of tvg, epm"),
    ],
)
def test_wrong_data_of_etbench_is_named_in_one_line(tmp_path, spoil, said):
    file, _ = made.etbench(tmp_path)
    data = json.loads(file.read_text())
    spoil(data)
    made.write_json(file, data)
    with pytest.raises(ConfigError) as refusal:
        etbench.load([file], [tmp_path])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", ["rows", "videos", "rekv"])
def test_video_mme_is_asked_after_the_whole_video(tmp_path, form):
    file, stream = made.videomme(tmp_path, form)
    dataset = videomme.load([file], [tmp_path / "data"])
    (video,) = dataset.videos
    assert video.path == tmp_path / "data" / "film.mp4"
    options, place = made.options_of(stream, 1)
    lettered = [f"{letter}. {o}." for letter, o in zip("ABCD", options, strict=True)]
    assert video.items[1].truth == "ABCD"[place]
    assert video.items[1].text.split("\n") == [
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.",
        f"What color was the {stream.things[1].shape}?",
        *lettered,
        "The best answer is:",
    ]
    frames = len(made.frame_times(stream))
    # each question's colour is under another letter: A, B, C
    everything = lambda question, seen: "Answer: A" if len(seen) == frames else "too early"
    assert table_of(dataset, everything, tmp_path) == {
        "by duration": {"short": (0.3333, 3), "Avg": (0.3333, 3)},
        "by task type": {"Attribute Perception": (0.5, 2), "OCR Problems": (0.0, 1)},
        "overall": {"Avg": (0.3333, 3)},
    }


def test_video_mme_has_two_letter_rules(tmp_path):
    """Its own removes "Answer:", whose A would count; TimeChat-Online's "Best option:", whose B."""
    file, _ = made.videomme(tmp_path)
    dataset = videomme.load([file], [tmp_path / "data"])
    own, theirs = (
        table_of(dataset, lambda question, seen: "Best option: A", tmp_path / name, scoring)
        for name, scoring in (("own", None), ("theirs", dataset.scorings[0]))
        if not (tmp_path / name).mkdir()
    )
    assert own["by task type"]["Attribute Perception"] == (0.0, 2)
    assert own["by task type"]["OCR Problems"] == (1.0, 1)
    assert theirs["by task type"]["Attribute Perception"] == (0.5, 2)


@pytest.mark.parametrize("name", ["streambench", "etbench", "videomme"])
def test_each_goes_through_the_embedded_model(tiny_engines, tmp_path, name):
    file, _ = getattr(made, name)(tmp_path)
    arguments = [name, file, "--videos", tmp_path, tmp_path / "data", "--system", "full-history"]
    out = ["--engine-dir", tiny_engines, "--out", tmp_path / "out", "--max-tokens", "4"]
    assert eval_run.main([str(each) for each in (*arguments, *out)]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["videos"] == {"watched": 1, "of": 1, "left out": {}}
    (system,) = report["systems"].values()
    assert system["asked"] == {"streambench": 3, "etbench": 6, "videomme": 3}[name]
    assert system["errors"] == []
    assert report["conditions"]["fps"] == "1"
    assert (report["judge"] is not None) == (name == "streambench")
    for remark in report["remarks"]:
        assert f"note: {remark}" in (tmp_path / "out" / "report.txt").read_text()
