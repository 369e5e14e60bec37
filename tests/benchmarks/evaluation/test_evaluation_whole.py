"""vicort-eval from its command line to its report: each format with the embedded model, killed and
gone on with, spoilt, and scripted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from support import evaluation_data as made
from support.scripted_session import scripted

from vicort.benchmarks.evaluation import ages, eval_run, ovo_bench, shapestream, streamingbench
from vicort.benchmarks.evaluation.eval_arguments import EvalOptions, parse_options
from vicort.benchmarks.evaluation.judge import ExactJudge
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.benchmarks.evaluation.score_tables import make_table, score_all
from vicort.benchmarks.evaluation.watching import Candidate
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.system import load_system

SYSTEMS = ("--system", "full-history", "--system", "simplestream", "--max-tokens", "4")


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamingbench")
    return folder, *made.streamingbench(folder)


def evaluate(engines, out, *arguments) -> int:
    return eval_run.main(
        [str(each) for each in (*arguments, "--engine-dir", engines, "--out", out)]
    )


def report(out) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("form", ["seconds", "frames", "rekv", "rekv-npy"])
def test_the_embedded_model_answers_open_questions(tiny_engines, tmp_path, capsys, form):
    file, _ = made.rvs(tmp_path, form)
    images = ("--image-fps", "2") if form == "frames" else ()
    assert (
        evaluate(
            tiny_engines,
            tmp_path / "out",
            "rvs",
            file,
            "--videos",
            tmp_path / "frames",
            "--fps",
            "2",
            *SYSTEMS,
            *images,
        )
        == 0
    )
    written = report(tmp_path / "out")
    cells = {
        name: {task: (cell["accuracy"], cell["asked"]) for task, cell in table["RVS"].items()}
        for name, table in written["accuracy"].items()
    }
    assert cells["full-history"] == {"first": (1.0, 1), "color": (1.0, 2), "Avg": (1.0, 3)}
    assert written["judge"].startswith("exact")
    assert "100.00 / 5.00" in capsys.readouterr().out


def test_each_benchmark_goes_through_the_embedded_model(tiny_engines, streaming, tmp_path, capsys):
    folder, (real, _, proactive, rows), _ = streaming
    ovo, _ = made.ovo_bench(tmp_path)
    asked = {
        "streamingbench": (real, proactive, "--videos", folder),
        "ovo-bench": (ovo, "--videos", tmp_path / "src_videos"),
    }
    for name, arguments in asked.items():
        assert evaluate(tiny_engines, tmp_path / name, name, *arguments, *SYSTEMS[2:]) == 0
        written = report(tmp_path / name)
        assert written["videos"]["left out"] == {}
        assert written["remarks"] == []
        assert list(written["other scorings"]) == ["ViCoStream", "SimpleStream"]
        for scoring in written["other scorings"].values():
            assert scoring["accuracy"].keys() == written["accuracy"].keys()
        assert all(not each["errors"] for each in written["systems"].values())
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()
        ]
        replies = [reply for line in lines if "replies" in line for reply in line["replies"]]
        assert all(
            Fraction(reply["seen_until"]) <= Fraction(reply["at"]) and reply["ttft_ms"] > 0
            for reply in replies
        )
        if name == "ovo-bench":  # simplestream reads up to four units of 16 tokens
            simple = next(
                line for line in lines if line.get("system") == "simplestream" and "replies" in line
            )
            assert {reply["tokens_read"] for reply in simple["replies"]} == {48, 64}
            assert "Backward Tracing" in capsys.readouterr().out
    assert (
        evaluate(
            tiny_engines,
            tmp_path / "csv",
            "streamingbench",
            rows,
            "--videos",
            folder / "videos",
            *SYSTEMS[2:],
        )
        == 0
    )
    titles = {"Real-Time Visual Understanding"}
    assert {
        title for table in report(tmp_path / "csv")["accuracy"].values() for title in table
    } == titles


def test_scripted_answers_give_the_table_made_by_hand(streaming, tmp_path):
    """A session that says A to every choice, and yes five seconds in: what is right then is counted
    from the data by hand."""
    folder, (real, sqa, proactive, _), streams = streaming
    dataset = streamingbench.load([real, sqa, proactive], [folder])
    sessions = {
        "says A": scripted(
            lambda question, seen: "yes" if "yes or no" in question.text and seen[-1] >= 5 else "A"
        )
    }
    ledger = Ledger(tmp_path / "answers.jsonl", {})
    assert eval_run.watch_all(dataset, EvalOptions("streamingbench"), sessions, ledger) == {}
    replies = [reply for watched in ledger.watched.values() for reply in watched.replies]
    table = make_table(dataset, score_all(dataset.items, replies, ExactJudge()))
    first = table["Real-Time Visual Understanding"]
    # thing n has its colour under letter n
    assert {heading: (cell.accuracy, cell.asked) for heading, cell in first.items()} == {
        "OP": (1.0, 2),
        "ATP": (0.0, 2),
        "CT": (0.0, 2),
        "Avg": (pytest.approx(1 / 3), 6),
    }
    in_time = [
        abs(max(5, int(stream.things[1].start) - 2) - int(stream.things[1].start)) <= 2
        for stream in streams
    ]
    cells = table["Contextual Understanding"]
    assert (cells["PO"].accuracy, cells["PO"].asked) == (sum(in_time) / 2, 2)
    assert (cells["SQA"].accuracy, cells["SQA"].asked) == (pytest.approx(1 / 3), 6)


def test_ovo_bench_scripted(tmp_path):
    file, _ = made.ovo_bench(tmp_path)
    dataset = ovo_bench.load([file], [tmp_path / "src_videos"])
    (video,) = dataset.videos
    truths = {(item.text, item.times[0]): item.truth for item in video.items}
    wrong = {("REC", 1), ("CRR", 0)}  # the second count and the first clue
    numbers = {
        (item.text, item.times[0]): (item.task, int(item.id.partition(".")[2] or 0))
        for item in video.items
    }

    def script(question, seen):
        key = question.text, question.at
        return (
            "?"
            if numbers[key] in wrong
            else f"It is {truths[key]}."
            if truths[key] in "ABCD"
            else truths[key]
        )

    ledger = Ledger(tmp_path / "answers.jsonl", {})
    eval_run.watch_all(dataset, EvalOptions("ovo-bench"), {"oracle": scripted(script)}, ledger)
    table = make_table(
        dataset,
        score_all(dataset.items, ledger.watched["oracle", video.name].replies, ExactJudge()),
    )
    forward = {
        heading: cell.accuracy for heading, cell in table["Forward Active Responding"].items()
    }
    assert forward == {"REC": 0.5, "SSR": 1.0, "CRR": 0.5, "Avg": pytest.approx(2 / 3)}
    assert table["overall"]["Avg"].accuracy == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_a_run_that_was_killed_goes_on(tiny_engines, streaming, tmp_path):
    folder, (real, *_), _ = streaming
    arguments = [
        "streamingbench",
        str(real),
        "--videos",
        str(folder),
        *SYSTEMS,
        "--engine-dir",
        str(tiny_engines),
    ]
    command = [sys.executable, "-m", "vicort.benchmarks.evaluation.eval_run", *arguments]
    killed, record = tmp_path / "killed", tmp_path / "killed" / "answers.jsonl"
    process = subprocess.Popen(
        [*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (record.is_file() and b'"replies"' in record.read_bytes()):
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = [line for line in record.read_text().splitlines() if '"replies"' in line]
    with record.open("a") as file:
        file.write('{"system": "full-history", "video": "cut o')  # as a kill in mid-line leaves it
    before = record.stat().st_ino, done[0]
    assert eval_run.main([*arguments, "--out", str(killed)]) == 0
    assert eval_run.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    after = record.read_text().splitlines()
    assert (record.stat().st_ino, next(line for line in after if '"replies"' in line)) == before, (
        "what was done stays"
    )
    assert replies_of(record) == replies_of(tmp_path / "whole" / "answers.jsonl")
    assert len(replies_of(record)) == 4
    assert report(killed)["accuracy"] == report(tmp_path / "whole")["accuracy"]


def replies_of(record) -> dict:
    """Texts by system and video, once each."""
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    videos = [line for line in lines if "replies" in line]
    by_video = {
        (line["system"], line["video"]): [
            (reply["item"], reply["text"]) for reply in line["replies"]
        ]
        for line in videos
    }
    assert len(by_video) == len(videos)
    return by_video


def test_a_changed_setting_or_system_is_refused_in_one_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    Ledger(path, {"protocol": "state", "ages": (0, 8)}).declare("mine", {"drop": "none"})
    again = Ledger(path, {"protocol": "state", "ages": (0, 8)})
    again.declare("mine", {"drop": "none"})
    again.declare("other", {"drop": "all"})
    with pytest.raises(
        ConfigError,
        match=r"started with settings: protocol 'state', this run has 'restart': keep",
    ) as refusal:
        Ledger(path, {"protocol": "restart", "ages": (0, 8)})
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match=r"system mine: drop 'none', this run has 'all'"):
        again.declare("mine", {"drop": "all"})


@pytest.mark.parametrize(
    "content", ["no json\n", "[]\n", '{"event": "answer"}\n', '{"settings": {}}\n{"video": 3}\n']
)
def test_a_file_that_is_no_record_is_left_alone(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is no record of vicort-eval"):
        Ledger(path, {})
    assert path.read_text() == content


def test_missing_and_spoilt_videos_are_counted_unless_strict(
    tiny_engines, streaming, tmp_path, capsys
):
    folder, (real, *_), _ = streaming
    data = json.loads(real.read_text())
    (tmp_path / "spoilt.mp4").write_text("no video")
    file = made.write_json(
        tmp_path / "data.json",
        [data[0], data[1] | {"video_path": "gone.mp4"}, data[1] | {"video_path": "spoilt.mp4"}],
    )
    arguments = ("streamingbench", file, "--videos", folder, tmp_path, "--system", "simplestream")
    assert evaluate(tiny_engines, tmp_path / "out", *arguments) == 0
    said, written = capsys.readouterr(), report(tmp_path / "out")
    assert "1 of 3 videos are not in" in said.err
    assert (written["videos"]["watched"], written["videos"]["of"]) == (1, 3)
    assert set(written["videos"]["left out"]) == {"gone.mp4", "spoilt.mp4"}
    assert (
        written["accuracy"]["simplestream"]["Real-Time Visual Understanding"]["Avg"]["asked"] == 3
    )
    assert evaluate(tiny_engines, tmp_path / "strict", *arguments, "--strict") == 2
    assert "gone.mp4: give their folders with --videos" in capsys.readouterr().err


def test_a_run_without_any_video_is_refused(tiny_engines, streaming, tmp_path, capsys):
    assert (
        evaluate(
            tiny_engines, tmp_path / "out", "streamingbench", streaming[1][0], "--videos", tmp_path
        )
        == 2
    )
    assert "2 of 2 videos are not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rvs", "x.json", "--judge", "gpt"], "--judge gpt: say `exact`"),
        (["ovo-bench", "x.json", "--context", "60"], "it needs --protocol restart"),
        (
            ["ovo-bench", "x.json", "--protocol", "restart", "--context", "-1"],
            "--context -1 is no time",
        ),
        (["ovo-bench", "x.json", "--fps", "fast"], "--fps fast is not a rate"),
        (["ovo-bench"], "the following arguments are required"),
        (["ovo-bench", "x.json", "--limit", "0"], "--limit 0"),
        (["mvbench"], "invalid choice: 'mvbench'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(capsys, arguments, said):
    assert eval_run.main(arguments) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_the_context_that_papers_cut_is_exact():
    options = parse_options(
        ["ovo-bench", "x.json", "--protocol", "restart", "--context", "0.1", "--fps", "29.97"]
    )
    assert (options.context, options.fps, options.carry) == (
        Fraction(1, 10),
        Fraction(2997, 100),
        "restart",
    )


def test_two_systems_of_one_name_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        (
            made.Path(eval_run.__file__).parents[2] / "configs" / "systems" / "uniform.yaml"
        ).read_text()
    )
    with pytest.raises(ConfigError, match="name 'uniform' is used by another system"):
        eval_run.systems_of(["uniform", str(tmp_path / "mine.yaml")])


# ---- the synthetic world


def test_accuracy_by_age(tiny_engines, tmp_path):
    small = load_system("vicostream").with_(memory={"device_mb": 0.01, "host_mb": 0})
    systems = {
        "full": load_system("full-history"),
        "latest": load_system("simplestream"),
        "too small": small,
    }
    with EngineSet.open(tiny_engines) as engines:
        (video,) = shapestream.load(engines.manifest.model, 1, (0, 3), cache=tmp_path).videos
        rows = [
            row
            for name, system in systems.items()
            for row in ages.rows_of(name, video, Candidate.of(engines, system))
        ]
    assert len(rows) == 3 * 3 * shapestream.THINGS
    full = [row for row in rows if row.system == "full"]
    assert [row.key for row in full] == [row.key for row in rows if row.system == "latest"]
    assert sum(row.right for row in full) >= 14
    assert all(
        0 < row.seen_until <= row.at and row.ttft_ms > 0 and row.tokens_read >= 16 for row in full
    )
    assert {
        row.at - next(each.at for each in full if each.age == 0) for row in full if row.age == 3
    } == {3.0}
    table = ages.by_age(rows)
    assert list(table["full"]) == ["now", "0 units", "3 units"]
    assert (table["full"]["3 units"]["accuracy"], table["full"]["3 units"]["asked"]) == (1.0, 7)
    assert table["latest"]["3 units"]["accuracy"] < 0.2
    assert table["full"]["3 units"]["tokens_read"] > 6 * table["latest"]["3 units"]["tokens_read"]
    assert table["too small"]["0 units"] == {
        "accuracy": 0.0,
        "asked": 7,
        "low": 0.0,
        "high": 0.3543,
        "errors": 7,
    }


def test_ages_in_chunks_and_files_that_are_made_once(tiny_engines, tmp_path):
    from vicort.runtime.manifest import read_manifest

    model = read_manifest(tiny_engines).model
    said: list[str] = []
    in_units = shapestream.load(model, 1, (0, 16), "units", tmp_path, progress=said.append)
    (path,) = [video.path for video in in_units.videos]
    made_at = os.stat(path).st_mtime_ns
    # of 8 units
    in_chunks = shapestream.load(model, 1, (0, 2), "chunks", tmp_path, progress=said.append)
    assert (len(said), os.stat(path).st_mtime_ns) == (1, made_at)
    assert [video.path for video in in_chunks.videos] == [path]
    pairs = [
        [(item.text, item.times, item.truth) for item in each.videos[0].items]
        for each in (in_units, in_chunks)
    ]
    assert pairs[0] == pairs[1]
    assert [item.task for item in in_chunks.videos[0].items][-1] == "2 chunks"
    assert {item.note["chunks"] for item in in_units.videos[0].items} == {0.0, 2.0}


@pytest.mark.parametrize(
    "wrong", [["--streams", "0"], ["--ages", "-1"], ["--ages", "8", "8"], ["--fps", "source"]]
)
def test_worlds_that_cannot_be_are_refused(tiny_engines, tmp_path, capsys, wrong):
    assert evaluate(tiny_engines, tmp_path / "out", "shapestream", "--cache", tmp_path, *wrong) == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_system_that_these_engines_cannot_run_is_left_out_only_where_none_is_named(
    tiny_engines, tmp_path, monkeypatch, capsys
):
    text = (
        made.Path(eval_run.__file__).parents[2] / "configs" / "systems" / "simplestream.yaml"
    ).read_text()
    (tmp_path / "large.yaml").write_text(
        text.replace("simplestream\n", "large\n") + "chunk: {frames: 1024}\n"
    )
    arguments = ("shapestream", "--streams", "1", "--ages", "0", "--cache", tmp_path)
    large = ("--system", tmp_path / "large.yaml")
    assert (
        evaluate(tiny_engines, tmp_path / "out", *arguments, "--system", "simplestream", *large)
        == 2
    )
    assert "system large takes chunks of 1024 frames" in capsys.readouterr().err
    monkeypatch.setattr(
        eval_run, "known_systems", lambda: [str(tmp_path / "large.yaml"), "simplestream"]
    )
    assert evaluate(tiny_engines, tmp_path / "out", *arguments) == 0
    assert "warning: large is left out" in capsys.readouterr().err
    assert list(report(tmp_path / "out")["accuracy"]) == ["simplestream"]
