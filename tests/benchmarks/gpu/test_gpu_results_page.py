"""The steps on docs/proof.md are those of the report, and of the program."""

import importlib.util
from pathlib import Path

from vicort.benchmarks.gpu.check import STEPS, check

TOOL = Path(__file__).parents[3] / "docs" / "tools" / "gpu_results.py"


def tool():
    spec = importlib.util.spec_from_file_location("gpu_results", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells if row[0].strip("`") in STEPS}


def test_the_page_is_what_the_report_says() -> None:
    results = tool()
    written = results.page(results.PAGE.read_text(), results.read(results.REPORT))
    assert results.PAGE.read_text() == written, "docs/proof.md is out of date: run `make docs`"


def test_each_step_is_there_with_its_outcome_and_what_it_ran_with(tmp_path: Path) -> None:
    results, out = tool(), tmp_path / "a.json"
    outcomes = {
        "plan": {"outcome": "failed", "reason": "SM 9.0 | is refused", "gpu": "NVIDIA H100"},
        "kernels": {"outcome": "passed", "gpu": "NVIDIA H100"},
    }
    check(list(outcomes), tmp_path, out, lambda name, folder, seconds: outcomes[name])
    text = results.page(results.PAGE.read_text(), results.read(out))
    found = rows(text)
    assert list(found) == list(STEPS)
    assert found["plan"][1] == "failed: SM 9.0 / is refused"
    assert found["kernels"][1] == "passed"
    assert "NVIDIA H100, code " in found["kernels"][2]
    assert found["graphs"][1] == "not run"
    # a second report takes the place of the first, and nothing else changes
    assert results.page(text, {}) == results.page(results.PAGE.read_text(), {})
