"""`vicort-run` on real engines and files: what the issue's users type, and what they get wrong."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from support.processes import python

from vicort.runtime.cli import run
from vicort.runtime.policies.system import known_systems

CLIP = Path(__file__).parent / "fixtures" / "shapes.mp4"
NASA = Path(__file__).parents[2] / "shared" / "videos" / "nasa_13013.mp4"
SMALL = (
    "name: small\ndrop: {policy: none}\ningest: {policy: recent-chunks, chunks: 1}\nretrieval: "
    "{policy: all}\n"
)


def vicort_run(capsys, engines, *arguments):
    """Exit code, stdout and stderr of a run in this process."""
    code = run.main([str(argument) for argument in (*arguments, "--engine-dir", engines)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_real_clip_ends_with_a_summary_whose_counts_are_right(capsys, tiny_engines):
    if not NASA.is_file():
        pytest.skip("the NASA clip is not beside this checkout")
    arguments = (
        NASA,
        "--ask",
        "what is there now?",
        "--ask",
        "@5 what color was the circle?",
        "--format",
        "jsonl",
        "--stats",
    )
    code, out, err = vicort_run(capsys, tiny_engines, *arguments, "--max-tokens", "4")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    *others, summary = events
    chunks = [event for event in others if event["event"] == "chunk"]
    answers = {event["at"]: event for event in others if event["event"] == "answer"}
    # 325 frames at 25 fps, every 13th at 2 fps: 0, 0.52, 1.0, … 12.52
    assert (summary["event"], summary["frames"], summary["dropped"]) == ("summary", 26, 0)
    assert sum(chunk["frames"] for chunk in chunks) == 26
    assert summary["chunks"] == len(chunks)
    assert set(answers) == {5.0, 12.96}
    assert answers[5.0]["seen_until"] == 5.0  # half a unit, which the question completes
    assert answers[12.96]["seen_until"] == 12.52
    assert set(summary["stage_ms"]) == {"preprocess", "vision", "tokens", "prefill"}
    assert summary["fps"] == pytest.approx(26 / summary["seconds"], rel=0.01)
    assert summary["overlap"] == pytest.approx(
        sum(summary["stage_ms"].values()) / 1000 / summary["seconds"], rel=0.01
    )


def test_a_trace_shows_stages_of_different_chunks_at_the_same_time(capsys, tiny_engines, tmp_path):
    code, _, _ = vicort_run(
        capsys, tiny_engines, CLIP, "--fps", "source", "--trace", tmp_path / "trace.json"
    )
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    by_stage = {
        stage: [span for span in spans if span["name"] == stage]
        for stage in ("preprocess", "vision", "tokens", "prefill")
    }
    assert code == 0
    assert all(by_stage.values())
    together = [
        (a["args"]["chunk"], b["args"]["chunk"])
        for a in by_stage["preprocess"]
        for b in by_stage["vision"]
        if a["ts"] < b["ts"] + b["dur"] and b["ts"] < a["ts"] + a["dur"]
    ]
    assert any(ahead > behind for ahead, behind in together)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ask", "what " * 600], "ask a shorter one"),
        (["--ask", "@-3 what is there now?"], "-3"),
        (["--ask", " "], "contains no question"),
        (["--system", "nothing-like-it"], ", ".join(known_systems())),
        (["--system", "{folder}/budget.yaml"], "too small for a chunk"),
        (["--system", "{folder}/key.yaml"], "unknown key 'memry'"),
        (["--max-tokens", "100000", "--ask", "what is there now?"], "room for"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    capsys, tiny_engines, tmp_path, arguments, words
):
    (tmp_path / "budget.yaml").write_text(
        SMALL + "memory: {device_mb: 0.5, when_full: drop-oldest}\n"
    )
    (tmp_path / "key.yaml").write_text(SMALL + "memry: {device_mb: 5, when_full: drop-oldest}\n")
    trace = tmp_path / "trace.json"
    arguments = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    code, out, err = vicort_run(capsys, tiny_engines, CLIP, "--trace", trace, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not trace.exists()


def _damage(folder):
    (folder / "vision.bin").write_bytes((folder / "vision.bin").read_bytes()[:-4] + b"oops")


def _other_schema(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))


def _other_model(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copy(folder / "tokens.onnx", folder / "vision.onnx")
    manifest["files"]["vision.onnx"] = manifest["files"]["tokens.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_damage, "damaged"),
        (_other_schema, "schema version 99"),
        (_other_model, "not what the manifest says"),
    ],
)
def test_an_engine_folder_that_is_not_right_names_the_command_that_rebuilds(
    capsys, tiny_engines, tmp_path, spoil, words
):
    folder = tmp_path / "set"
    shutil.copytree(tiny_engines, folder)
    spoil(folder)
    code, out, err = vicort_run(capsys, folder, CLIP, "--ask", "what is there now?")
    assert (code, out) == (2, "")
    assert words in err
    assert "vicort-build tiny" in err
    assert err.count("\n") == 1


def test_ctrl_c_flushes_the_summary_and_exits_130(tiny_engines):
    options = ("--fps", "source", "--format", "jsonl", "--stats", "--engine-dir", str(tiny_engines))
    running = python("-m", "vicort.runtime.cli.run", "testsrc:seconds=3600", *options, text=True)
    for event in ("memory", "chunk", "chunk"):
        assert json.loads(running.stdout.readline())["event"] == event
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert json.loads(out.splitlines()[-1])["event"] == "summary"
    assert "Traceback" not in err
