"""The files that an evaluation writes below --out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vicort.benchmarks.evaluation.eval_arguments import EvalOptions
from vicort.benchmarks.evaluation.evaluated_systems import say
from vicort.runtime.written_files import write_file

RECORD, REPORT, TABLE = "answers.jsonl", "report.json", "report.txt"


def write_report(options: EvalOptions, content: Mapping[str, Any], text: str) -> None:
    """Prints the text, and writes both files."""
    written = json.dumps(content, indent=1, ensure_ascii=False)
    write_file(options.out / REPORT, written + "\n")
    write_file(options.out / TABLE, text + "\n")
    print(text)
    say(f"written: {options.out / REPORT}, {options.out / TABLE}")
