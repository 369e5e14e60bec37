"""The demo shows that it goes on, hides what libraries say, and counts what is not there apart."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import videos

from vicort.benchmarks import demo
from vicort.benchmarks.common import contact_sheet

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


def test_all_questions_are_in_one_picture(tmp_path, monkeypatch):
    video = tmp_path / "clip.mp4"
    videos.write_video(video, 50)
    monkeypatch.setattr(demo, "VIDEO", video)
    asked = [
        {"id": "a", "question": "what is there?", "answer": "green"},
        {"id": "b", "question": "was there a cross?", "answer": "no"},
        {"id": "c", "question": "was there a rocket?", "answer": None},
    ]
    answers = {
        id: {"at": at, "text": text}
        for id, at, text in (("a", 0.5, "green"), ("b", 2.0, "yes"), ("c", 2.0, "x"))
    }
    path = tmp_path / "sheet.png"
    demo.write_sheet(path, asked, answers)
    sheet = np.asarray(Image.open(path)).astype(int)
    first, last = (videos.image(number, 320, 240) for number in (12, 49))
    at = [rows_of(sheet, frame) for frame in (first, last)]
    assert at[0] < at[1]
    right, wrong = (
        np.abs(sheet - colour).max(axis=2) < 40
        for colour in (contact_sheet.GREEN, contact_sheet.RED)
    )
    beside = slice(contact_sheet.FRAME + 2 * contact_sheet.GAP, None)
    assert right[at[0] : at[1], beside].any()
    assert not wrong[at[0] : at[1], beside].any()
    assert wrong[at[1] :, beside].any()
    assert not right[at[1] :, beside].any()


def rows_of(sheet, frame):
    """The row of the sheet at which a frame begins."""
    left = contact_sheet.GAP
    apart = [
        np.abs(sheet[top : top + 240, left : left + 320] - frame).mean()
        for top in range(len(sheet) - 239)
    ]
    assert min(apart) < 12
    return int(np.argmin(apart))
