"""A GPU that is lost in the middle of a stream, at any call of the driver: over the real cuda.core
and a stand-in for NVIDIA's driver."""

import json
from pathlib import Path

import pytest
from cuda.bindings.driver import CUresult
from support import processes
from support.reported_streams import SPILLING
from support.sizes import slow
from support.stand_in_driver.child import environment
from support.stand_in_driver.failing_streams import (
    closed_after_the_gpu_is_lost,
    left_after_the_gpu_is_lost,
    lost_while_a_question_is_answered,
    shared_stream_that_fails,
    stream_that_fails,
)

RESULTS = ("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_LAUNCH_FAILED")
NEVER = 1 << 40


def check(outcome, result):
    """Each error has the same line, nobody waits, and nothing is left."""
    assert {kind for _, kind, _ in outcome.errors} <= {"DeviceError"}
    lines = {line for _, _, line in outcome.errors}
    assert len(lines) <= 1
    calls = [call for call, _, _ in outcome.errors]
    assert calls == ["close"] or "close" not in calls
    for line in lines:
        assert line.startswith(f"the GPU failed ({result}), and this process can no longer use it")
        assert "\n" not in line
    assert outcome.seconds < 10
    assert outcome.unanswered == 0
    assert outcome.threads == []
    assert outcome.printed == ""


@pytest.mark.parametrize(
    ("overlap", "step"), [(True, 173), (False, 211), *slow((True, 7), (False, 7))]
)
def test_whichever_call_loses_the_gpu_the_session_ends_with_one_line(overlap, step, gpu_child):
    total = gpu_child.call(stream_that_fails, NEVER, 700, overlap).calls
    assert total > 4 * step
    failed = 0
    for turn, after in enumerate([*range(0, 60, step // 5), *range(60, total, step)]):
        result = RESULTS[turn % len(RESULTS)]
        outcome = gpu_child.call(stream_that_fails, after, int(getattr(CUresult, result)), overlap)
        check(outcome, result)
        failed += bool(outcome.errors)
    assert failed > turn / 2


@pytest.mark.parametrize(
    "function",
    [
        *("cuGraphInstantiateWithFlags", "cuStreamEndCapture", "cuGraphLaunch", "cuMemcpyAsync"),
        *slow("cuLaunchKernelEx", "cuLaunchHostFunc", "cuEventSynchronize", "cuStreamWaitEvent"),
        *slow("cuGraphExecDestroy", "cuStreamDestroy_v2", "cuMemFreeHost", "cuMemFreeAsync"),
    ],
)
def test_each_kind_of_call_may_lose_the_gpu(function, gpu_child):
    for after in (0, 3):
        outcome = gpu_child.call(stream_that_fails, after, 700, True, function)
        check(outcome, "CUDA_ERROR_ILLEGAL_ADDRESS")


@pytest.mark.parametrize(("overlap", "step"), [(True, 211), *slow((True, 13), (False, 13))])
def test_a_call_that_fails_once_ends_the_session_in_order(overlap, step, gpu_child):
    """Or changes nothing: a run that cannot be captured runs without a graph."""
    total = gpu_child.call(stream_that_fails, NEVER, 2, overlap).calls
    for after in range(0, total, step):
        outcome = gpu_child.call(stream_that_fails, after, 2, overlap, None, False)
        for _, kind, line in outcome.errors:
            assert kind in ("DeviceError", "EngineError")
            assert "\n" not in line
        assert outcome.seconds < 10
        assert outcome.unanswered == 0
        assert outcome.threads == []
        assert all("not captured" in line for line in outcome.printed.splitlines())


@pytest.mark.parametrize("overlap", [True, False])
def test_a_gpu_that_is_lost_in_an_answer_ends_the_stream(overlap, gpu_child):
    outcome = gpu_child.call(lost_while_a_question_is_answered, overlap)
    calls = [call for call, _, _ in outcome.errors]
    assert calls == ["answer", "later", "push", "wants", "finish"]
    check(outcome, "CUDA_ERROR_ILLEGAL_ADDRESS")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("known", ["push", "answer"])
def test_closing_says_nothing_that_the_caller_knows(overlap, known, gpu_child):
    outcome = gpu_child.call(closed_after_the_gpu_is_lost, overlap, known)
    assert [call for call, _, _ in outcome.errors] == [known]
    check(outcome, "CUDA_ERROR_ILLEGAL_ADDRESS")


@pytest.mark.parametrize("overlap", [True, False])
def test_closing_raises_what_nobody_has_said(overlap, gpu_child):
    outcome = gpu_child.call(closed_after_the_gpu_is_lost, overlap, "")
    assert [call for call, _, _ in outcome.errors] == ["close"]
    check(outcome, "CUDA_ERROR_ILLEGAL_ADDRESS")


def test_leaving_a_session_by_a_device_error_raises_that_error(gpu_child):
    outcome = gpu_child.call(closed_after_the_gpu_is_lost, True, "body")
    assert outcome.errors == [("with", "DeviceError", "of a source")]


def test_leaving_a_shared_vision_raises_what_nobody_has_said(gpu_child):
    outcome = gpu_child.call(left_after_the_gpu_is_lost)
    (_, _, first), (_, kind, second) = outcome.errors
    assert first == "of a source"
    assert (kind, second.startswith("the GPU failed (")) == ("DeviceError", True)


@pytest.mark.parametrize("after", [300, *slow(700, 1500)])
def test_a_c_programs_calls_on_every_thread_return_with_the_error(after, gpu_child):
    outcome = gpu_child.call(shared_stream_that_fails, after, 700)
    kinds = {(call, kind) for call, kind, _ in outcome.errors}
    assert ("push", "DeviceError") in kinds
    assert {kind for _, kind in kinds} <= {"DeviceError", "SessionClosed"}
    assert len({line for _, kind, line in outcome.errors if kind == "DeviceError"}) == 1
    assert outcome.seconds < 20
    assert outcome.threads == []


RUN = """
import sys
sys.path.insert(0, {tests!r})
from contextlib import nullcontext
from pathlib import Path
from support.stand_in_driver.engines import StandInEngineSet, stand_in_driver
from vicort.runtime.cli import run
from vicort.runtime.policies.system import load_system
engines = StandInEngineSet()
run.find_engine_dir = lambda model: Path("engines")
run._open_engines = lambda *_: nullcontext(engines)
run.Session.open = staticmethod(
    lambda engines, chosen, **options: run.Session(engines, load_system(chosen), **options)
)
stand_in_driver().fail(700, after={after}, lasting=True)
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("after", [700, *slow(100, 300, 1500)])
def test_vicort_run_ends_with_2_and_one_line(after, tmp_path):
    (tmp_path / "spilling.yaml").write_text(SPILLING.to_yaml())
    ended = processes.python(
        *("-c", RUN.format(tests=str(Path(__file__).parents[2]), after=after)),
        *("testsrc:seconds=60,size=32x32,fps=4", "--ask", "@3 what?", "--ask", "why?"),
        *("--system", str(tmp_path / "spilling.yaml"), "--format", "jsonl"),
        text=True,
        environment=environment(),
    )
    said, printed = ended.communicate(timeout=60)
    lines = [line for line in printed.splitlines() if "the embedded" not in line]
    assert len(lines) == 1, printed
    assert lines[0].startswith("vicort-run: the GPU failed (CUDA_ERROR_ILLEGAL_ADDRESS)")
    assert ended.returncode == 2
    assert all(json.loads(line) for line in said.splitlines())
