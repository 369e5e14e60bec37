"""`make demo`: engines for the embedded model, a real video file through the pipeline, questions
answered while it runs.

Exits with 1 if an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
FIXTURES = CHECKOUT / "tests" / "fixtures"
VIDEO, TRUTH = FIXTURES / "shapes.mp4", FIXTURES / "shapes.json"


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
    run("vicort.export.build", "tiny")
    questions = CHECKOUT / "build" / "demo" / "questions.jsonl"
    questions.parent.mkdir(parents=True, exist_ok=True)
    questions.write_text(
        "".join(
            json.dumps({key: case[key] for key in ("at", "question", "id")}) + "\n"
            for case in cases
        )
    )
    given = ("--system", options.system, "--questions", os.path.relpath(questions))
    events = run("vicort.runtime.cli.run", os.path.relpath(VIDEO), *given, "--format", "jsonl")
    return report(cases, [json.loads(line) for line in events.splitlines()])


def run(module: str, *arguments: str) -> str:
    """Run a vicort tool as a user would, say so, and return what it wrote to stdout."""
    print(
        "$",
        {"vicort.export.build": "vicort-build", "vicort.runtime.cli.run": "vicort-run"}[module],
        *arguments,
        flush=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def report(cases: list[dict], events: list[dict]) -> int:
    """Print each answer beside the truth, and the summary; returns 1 if an answer is wrong."""
    answers = {event["id"]: event for event in events if event["event"] == "answer"}
    summary = next(event for event in events if event["event"] == "summary")
    right = 0
    for case in cases:
        answer = answers[case["id"]]
        right += answer["text"] == case["answer"]
        verdict = "right" if answer["text"] == case["answer"] else f"WRONG, it was {case['answer']}"
        print(
            f"  at {answer['at']:5.1f} s  {case['question']:30}  {answer['text']:16}  {verdict}  "
            f"({answer['ttft_ms']:.0f} ms)"
        )
    print(
        f"{right} of {len(cases)} right; {summary['frames']} frames in {summary['seconds']:.2f} "
        f"s, system {summary['system']}"
    )
    return int(right < len(cases))


if __name__ == "__main__":
    sys.exit(main())
