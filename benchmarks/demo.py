"""`make demo`: engines for the embedded model, a real video file through the pipeline, questions
answered while it runs, some of them about what is not there.

It leaves the video with questions and answers drawn on it, and a picture of all of them. Exits with
1 if an answer about what is there is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vicort.benchmarks.common.contact_sheet import SheetEntry, contact_sheet
from vicort.runtime.written_files import write_file

CHECKOUT = Path(__file__).parents[1]
FIXTURES = CHECKOUT / "tests" / "fixtures"
VIDEO, TRUTH = FIXTURES / "shapes.mp4", FIXTURES / "shapes.json"
WRITTEN = CHECKOUT / "build" / "demo"
# about what never came, and in words that the model does not know: shown as they come
ABSENT = (
    ("was there a ring?", "no"),
    ("was there a cross?", "no"),
    ("what shape was red?", "none"),
    ("what color was the cross?", "none"),
    ("was there a rocket?", None),
)
REFRESHED_EVERY = 1.0  # seconds, of the time that is shown while engines are built
FOREIGN = ("Warning", "warn(", "[torch.onnx]", "torch.onnx", "onnxscript", "W1", "W0")
LOG_LINES = 20  # of what a failed build wrote


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m vicort.benchmarks.demo", description=__doc__)
    parser.add_argument(
        "--system", default="full-history", help="any of configs/systems (default: %(default)s)"
    )
    options = parser.parse_args()
    cases = [
        {"id": str(number)} | case
        for number, case in enumerate(json.loads(TRUTH.read_text())["questions"])
    ]
    asked = cases + [
        {"id": f"absent{number}", "at": None, "question": question, "answer": answer}
        for number, (question, answer) in enumerate(ABSENT, 1)
    ]
    built = start("vicort.export.build", "tiny")
    wait_for_build(built)
    WRITTEN.mkdir(parents=True, exist_ok=True)
    questions, video = WRITTEN / "questions.jsonl", WRITTEN / "answers.mp4"
    questions.write_text(
        "".join(
            json.dumps({key: case[key] for key in ("at", "question", "id")}) + "\n"
            for case in asked
        )
    )
    given = ("--system", options.system, "--questions", os.path.relpath(questions))
    written = ("--format", "jsonl", "--render", os.path.relpath(video))
    ran = start("vicort.runtime.cli.run", os.path.relpath(VIDEO), *given, *written)
    out, err = ran.communicate()
    if ran.returncode:
        print(err, end="", file=sys.stderr)
        sys.exit(ran.returncode)
    events = [json.loads(line) for line in out.splitlines()]
    answers = {event["id"]: event for event in events if event["event"] == "answer"}
    summary = next(event for event in events if event["event"] == "summary")
    code = report(cases, asked[len(cases) :], answers, summary)
    sheet = WRITTEN / "answers.png"
    write_sheet(sheet, asked, answers)
    print(f"the video with the answers: {os.path.relpath(video)}")
    print(f"all questions in one picture: {os.path.relpath(sheet)}")
    return code


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a vicort tool as a user would, and say so."""
    tools = {"vicort.export.build": "vicort-build", "vicort.runtime.cli.run": "vicort-run"}
    print("$", tools[module], *arguments, flush=True)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_build(build: subprocess.Popen[str]) -> None:
    """Show the lines of the build and how long it has taken, without warnings of the libraries that
    it uses. Exits as the build does if that fails, and shows what it wrote."""
    screen, began, written = Progress(sys.stdout), time.monotonic(), list[str]()

    def read(lines: Iterable[str]) -> None:
        for line in lines:
            written.append(line)
            if line.strip() and not is_foreign(line):
                screen.line(line.rstrip())

    readers = [
        threading.Thread(target=read, args=(lines,), daemon=True)
        for lines in (build.stdout, build.stderr)
        if lines
    ]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        screen.show(f"building the engines, {time.monotonic() - began:.0f} s (once; some minutes)")
        readers[0].join(REFRESHED_EVERY)
        readers[1].join(0.01 if readers[0].is_alive() else REFRESHED_EVERY)
    screen.clear()
    if build.wait():
        print("".join(written[-LOG_LINES:]), end="", file=sys.stderr)
        sys.exit(build.returncode)


def is_foreign(line: str) -> bool:
    """Whether a line is a warning of a library, or the code that such a warning quotes."""
    if line.startswith("vicort-"):
        return False
    return line.startswith(" ") or any(mark in line for mark in FOREIGN)


class Progress:
    """A last line on a terminal that is replaced; elsewhere a line a minute. Thread-safe."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._shown = ""
        self._next = 0.0  # monotonic seconds

    def show(self, text: str) -> None:
        with self._lock:
            if self._file.isatty():
                self._clear()
                self._shown = text
                self._put(text)
            elif time.monotonic() >= self._next:
                self._next = time.monotonic() + 60
                self._put(f"{text}\n")

    def line(self, text: str) -> None:
        with self._lock:
            self._clear()
            self._put(f"{text}\n")

    def clear(self) -> None:
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self._shown:
            self._put(f"\r{' ' * len(self._shown)}\r")
            self._shown = ""

    def _put(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def report(
    cases: Sequence[dict[str, Any]],
    absent: Sequence[dict[str, Any]],
    answers: Mapping[str, dict[str, Any]],
    summary: Mapping[str, Any],
) -> int:
    """Print each answer beside the truth, and the summary; returns 1 if an answer to one of `cases`
    is wrong. absent: questions about what is not there."""
    right = sum(_print_answer(case, answers[case["id"]]) for case in cases)
    print("about what is not there, and a word that the model does not know:")
    also = sum(_print_answer(case, answers[case["id"]]) for case in absent)
    print(
        f"{right} of {len(cases)} right; {summary['frames']} frames in {summary['seconds']:.2f} "
        f"s, system {summary['system']}"
    )
    wrong = sum(case["answer"] is not None for case in absent) - also
    print(
        f"about what is not there: {also} right, {wrong} wrong. The embedded model knows coloured "
        "shapes, and not them all: docs/confidence.md"
    )
    return int(right < len(cases))


def write_sheet(
    path: Path, asked: Sequence[dict[str, Any]], answers: Mapping[str, dict[str, Any]]
) -> None:
    """A picture with a frame of the clip for each question."""
    cells = []
    for case in asked:
        answer, truth = answers[case["id"]], case["answer"]
        right = None if truth is None else answer["text"] == truth
        remark = {True: "right", False: f"wrong, it was {truth}", None: "means nothing"}[right]
        cells.append(SheetEntry(answer["at"], case["question"], answer["text"], right, remark))
    judged = [cell.right for cell in cells if cell.right is not None]
    title = f"{VIDEO.name}: {sum(judged)} of {len(judged)} answers are right"
    write_file(path, contact_sheet(str(VIDEO), title, cells))


def _print_answer(case: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Print a line; returns whether the answer is right."""
    right = answer["text"] == case["answer"]
    if case["answer"] is None:
        verdict = "means nothing"
    else:
        verdict = "right" if right else f"WRONG, it was {case['answer']}"
    print(
        f"  at {answer['at']:5.1f} s  {case['question']:30}  {answer['text']:16}  {verdict}  "
        f"({answer['ttft_ms']:.0f} ms, probability {answer['probability']:.2f})"
    )
    return right


if __name__ == "__main__":
    sys.exit(main())
