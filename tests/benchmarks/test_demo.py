"""The demo shows that it goes on, hides what libraries say, and counts what is not there apart."""

import subprocess
import sys

import pytest

from vicort.benchmarks import demo

NOISY = """
import sys, time
print("exported vision.onnx", flush=True)
print("/x/y.py:3: UserWarning: this is old\\n  warnings.warn(text)", file=sys.stderr, flush=True)
print("[torch.onnx] Obtain model graph... done", flush=True)
print("vicort-build: chose onnxruntime", file=sys.stderr, flush=True)
sys.exit({code})
"""


def build(code=0):
    return subprocess.Popen(
        [sys.executable, "-c", NOISY.format(code=code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_build_shows_progress_and_its_own_lines_alone(capsys):
    demo.wait_for_build(build())
    out, err = capsys.readouterr()
    assert "building the engines, 0 s" in out
    assert {"exported vision.onnx", "vicort-build: chose onnxruntime"} <= set(out.splitlines())
    assert "Warning" not in out + err
    assert "warn" not in out + err
    assert "torch" not in out + err


def test_a_line_of_ours_is_never_hidden():
    assert not demo.is_foreign("vicort-build: W1: the Warning of torch.onnx is ours")
    assert demo.is_foreign("W1129 10:00:00.000000 torch/onnx/x.py:3] old")


def test_a_build_that_fails_shows_all_that_it_wrote(capsys):
    with pytest.raises(SystemExit) as ended:
        demo.wait_for_build(build(code=3))
    assert ended.value.code == 3
    assert "UserWarning: this is old" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "code"), [("green", 0), ("red", 1)])
def test_only_answers_about_what_is_there_decide_how_it_ends(capsys, text, code):
    case = {"id": "0", "question": "what color was the square?", "answer": "green"}
    absent = [
        {"id": "a", "question": "was there a cross?", "answer": "no"},
        {"id": "b", "question": "was there a rocket?", "answer": None},
    ]
    answers = {
        id: {"at": 4.0, "text": said, "ttft_ms": 5.0, "probability": 0.9}
        for id, said in (("0", text), ("a", "yes"), ("b", "yes"))
    }
    summary = {"frames": 8, "seconds": 0.5, "system": "distinct"}
    assert demo.report([case], absent, answers, summary) == code
    out = capsys.readouterr().out
    assert f"{1 - code} of 1 right" in out
    assert "WRONG, it was no" in out
    assert "0 right, 1 wrong" in out
    assert "means nothing" in out
