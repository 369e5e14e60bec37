"""gpu-check's report over several calls: what stays, what is run again, and what is not begun for
want of time."""

import json
from pathlib import Path

import pytest

from vicort.benchmarks.gpu import check as gpu_check
from vicort.benchmarks.gpu import engine_steps as gpu_engines
from vicort.benchmarks.gpu.check import STEPS, check

PASSED, SKIPPED = {"outcome": "passed"}, {"outcome": "skipped", "reason": "no GPU"}


def steps_in(out: Path) -> dict:
    return json.loads(out.read_text())["steps"]


def test_steps_of_earlier_calls_stay_in_the_order_of_all_steps(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    check(["3b-build", "plan"], tmp_path, out, lambda name, folder: PASSED | {"call": 1})
    check(["kernels", "plan"], tmp_path, out, lambda name, folder: PASSED | {"call": 2})
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
        lambda name, folder: PASSED if name == "plan" else SKIPPED,
    )
    found = check(
        ["plan", "kernels"],
        tmp_path,
        out,
        lambda name, folder: SKIPPED if name == "plan" else {"outcome": "failed", "reason": "?"},
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
        monkeypatch.setattr(gpu_engines, "nvidia_smi", lambda gpu=gpu: gpu)
        check([name], tmp_path, out, lambda name, folder: PASSED)
    assert list(steps_in(out)) == ["kernels"]


def test_clocks_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.json"
    for name, clock in (("plan", "345"), ("kernels", "1980")):
        told = {"name": "H200", "driver_version": "1", "clocks.sm": clock}
        monkeypatch.setattr(gpu_engines, "nvidia_smi", lambda told=told: told)
        check([name], tmp_path, out, lambda name, folder: PASSED)
    assert list(steps_in(out)) == ["plan", "kernels"]


def test_no_step_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    now = [0.0]

    def run(name: str, folder: Path) -> dict:
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
            ["--list", "--out", str(tmp_path / "a.json"), "--cache", str(tmp_path / "cache")]
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
