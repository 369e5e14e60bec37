"""gpu-check's report over several calls: what stays, what is run again, and what is not begun for
want of time."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vicort.benchmarks.gpu import check as gpu_check
from vicort.benchmarks.gpu import nvidia_smi as gpu_smi
from vicort.benchmarks.gpu.check import STEPS, check

PASSED, SKIPPED = {"outcome": "passed"}, {"outcome": "skipped", "reason": "no GPU"}


def steps_in(out: Path) -> dict:
    return json.loads(out.read_text())["steps"]


def test_steps_of_earlier_calls_stay_in_the_order_of_all_steps(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    check(["3b-build", "plan"], tmp_path, out, lambda name, folder, seconds: PASSED | {"call": 1})
    check(["kernels", "plan"], tmp_path, out, lambda name, folder, seconds: PASSED | {"call": 2})
    assert {name: step["call"] for name, step in steps_in(out).items()} == {
        "plan": 2,
        "kernels": 2,
        "3b-build": 1,
    }
    assert list(steps_in(out)) == ["plan", "kernels", "3b-build"]
    assert all(step["measured"]["date"] for step in steps_in(out).values())


def test_a_step_that_is_skipped_takes_nothings_place(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    check(
        ["plan", "kernels"],
        tmp_path,
        out,
        lambda name, folder, seconds: PASSED if name == "plan" else SKIPPED,
    )
    found = check(
        ["plan", "kernels"],
        tmp_path,
        out,
        lambda name, folder, seconds: (
            SKIPPED if name == "plan" else {"outcome": "failed", "reason": "?"}
        ),
    )
    assert [step["outcome"] for step in steps_in(out).values()] == ["passed", "failed"]
    # what this call says of itself
    assert [step["outcome"] for step in found["ran"].values()] == ["skipped", "failed"]


@pytest.mark.parametrize(
    "gpus",
    [
        ({"name": "A100", "driver_version": "1"}, {"name": "H200", "driver_version": "1"}),
        ({"name": "H200", "driver_version": "1"}, {"name": "H200", "driver_version": "2"}),
    ],
)
def test_another_gpu_or_driver_begins_another_report(
    gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.json"
    for name, gpu in zip(("plan", "kernels"), gpus, strict=True):
        monkeypatch.setattr(gpu_smi, "nvidia_smi", lambda gpu=gpu: gpu)
        check([name], tmp_path, out, lambda name, folder, seconds: PASSED)
    assert list(steps_in(out)) == ["kernels"]


def test_clocks_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.json"
    for name, clock in (("plan", "345"), ("kernels", "1980")):
        told = {"name": "H200", "driver_version": "1", "clocks.sm": clock}
        monkeypatch.setattr(gpu_smi, "nvidia_smi", lambda told=told: told)
        check([name], tmp_path, out, lambda name, folder, seconds: PASSED)
    assert list(steps_in(out)) == ["plan", "kernels"]


def test_no_step_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    now = [0.0]

    def run(name: str, folder: Path, seconds: float) -> dict:
        now[0] += STEPS[name].expected
        return PASSED

    names = ["3b-stages", "3b-pipeline", "3b-decode-gpu"]
    within = STEPS["3b-stages"].expected + STEPS["3b-decode-gpu"].expected
    found = check(names, tmp_path, tmp_path / "a.json", run, within, lambda: now[0])
    assert [step["outcome"] for step in found["ran"].values()] == ["passed", "skipped", "passed"]
    assert (
        found["ran"]["3b-pipeline"]["reason"]
        == "it is expected to take 90 s, 45 are left of --within: run it with --only 3b-pipeline"
    )


def test_the_list_says_what_each_step_is_expected_to_take(tmp_path: Path, capsys) -> None:
    assert (
        gpu_check.main(
            ["--list", "--out", str(tmp_path / "no" / "a.json"), "--cache", str(tmp_path / "cache")]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STEPS)
    assert next(line for line in lines if line.startswith("3b-pipeline ")).split()[1:3] == [
        "90",
        "s",
    ]
    assert not list(tmp_path.iterdir())


def test_every_step_is_given_more_time_than_it_is_expected_to_take() -> None:
    assert not [name for name, step in STEPS.items() if step.expected > step.seconds]
    for size in ("3b", "7b"):
        names = [name for name in STEPS if name.startswith(f"{size}-")]
        assert names[0] == f"{size}-build"  # which the others start from
        assert all(STEPS[name].run.keywords["size"] == size for name in names)


def test_a_step_gets_what_is_left_of_the_time_and_never_more_than_its_own(tmp_path: Path) -> None:
    now, given = [0.0], {}

    def run(name: str, folder: Path, seconds: float) -> dict:
        given[name] = seconds
        now[0] += 100
        return PASSED

    check(["plan", "graphs", "streams"], tmp_path, tmp_path / "a.json", run, 300, lambda: now[0])
    assert given == {"plan": 300, "graphs": 200, "streams": 100}
    check(["plan"], tmp_path, tmp_path / "a.json", run)
    assert given["plan"] == STEPS["plan"].seconds


def test_what_is_under_way_is_in_the_report_until_it_ends(tmp_path: Path) -> None:
    """A process that is killed cannot say so."""
    out, seen = tmp_path / "a.json", []

    def run(name: str, folder: Path, seconds: float) -> dict:
        seen.append((json.loads(out.read_text()), out.with_suffix(".txt").read_text()))
        return PASSED

    check(["plan", "kernels"], tmp_path, out, run)
    assert [report["under_way"]["step"] for report, _ in seen] == ["plan", "kernels"]
    assert list(seen[1][0]["steps"]) == ["plan"]
    assert "kernels was begun at " in seen[1][1]
    assert "under_way" not in json.loads(out.read_text())
    assert "was begun at" not in out.with_suffix(".txt").read_text()


def test_an_interruption_is_the_outcome_of_its_step_and_ends_the_run(tmp_path: Path) -> None:
    def run(name: str, folder: Path, seconds: float) -> dict:
        if name == "kernels":
            raise KeyboardInterrupt
        return PASSED

    with pytest.raises(KeyboardInterrupt):
        check(["plan", "kernels", "graphs"], tmp_path, tmp_path / "a.json", run)
    steps = steps_in(tmp_path / "a.json")
    assert {name: step["outcome"] for name, step in steps.items()} == {
        "plan": "passed",
        "kernels": "failed",
    }
    assert steps["kernels"]["reason"] == "it was interrupted after 0 s, before it ended"


def test_an_interruption_before_a_step_has_begun_is_its_outcome_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(path: Path, report: dict) -> None:
        written.append(report.get("under_way"))
        if len(written) == 1:
            raise KeyboardInterrupt
        real(path, report)

    real = gpu_check.write
    monkeypatch.setattr(gpu_check, "write", write)
    with pytest.raises(KeyboardInterrupt):
        check(["plan"], tmp_path, tmp_path / "a.json", lambda name, folder, seconds: PASSED)
    assert steps_in(tmp_path / "a.json")["plan"]["outcome"] == "failed"


def test_each_step_names_what_it_ran_with(tmp_path: Path) -> None:
    check(["plan"], tmp_path, tmp_path / "a.json", lambda name, folder, seconds: PASSED)
    versions = steps_in(tmp_path / "a.json")["plan"]["measured"]["versions"]
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["code"] == gpu_check.code_hash()


def test_the_text_says_of_each_step_when_and_what_and_shows_what_it_can(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    check(["plan", "3b-stages"], tmp_path, out, lambda name, folder, seconds: PASSED)
    check(["kernels"], tmp_path, out, lambda name, folder, seconds: SKIPPED)
    text = out.with_suffix(".txt").read_text()
    for name, step in steps_in(out).items():
        (line,) = (each for each in text.splitlines() if each.split()[:1] == [name])
        assert line.split()[1] == step["outcome"]
        assert line.endswith(step["measured"]["date"])
    assert "kernels: no GPU" in text
    # of a step whose result has another form than the table wants
    assert "No stage table: KeyError('stage_ms')" in text


def test_a_broken_library_fails_the_steps_that_use_it_and_leaves_the_report(
    tmp_path: Path,
) -> None:
    script = Path(__file__).parents[2] / "support" / "bare_gpu_check.py"
    command = [sys.executable, script, "--only", "environment", "--out", tmp_path / "a.json"]
    done = subprocess.run(
        [*command, "--cache", tmp_path / "cache"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    (step,) = steps_in(tmp_path / "a.json").values()
    assert step["outcome"] == "failed"
    assert "no module but NumPy" in step["reason"]
