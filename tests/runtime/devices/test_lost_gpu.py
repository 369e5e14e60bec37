"""A GPU that is lost in the middle of a stream, at any call of the driver: over the real cuda.core
and a stand-in for NVIDIA's driver."""

import pytest
from cuda.bindings.driver import CUresult
from support.sizes import slow
from support.stand_in_driver.child import StandInChild
from support.stand_in_driver.failing_streams import shared_stream_that_fails, stream_that_fails

RESULTS = ("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_LAUNCH_FAILED")
NEVER = 1 << 40


@pytest.fixture(scope="module")
def child():
    opened = StandInChild()
    yield opened
    opened.close()


def check(outcome, result):
    """Whoever is told is told the same line, nobody waits, and nothing is left."""
    for call, kind, line in outcome.told:
        assert kind == (
            "SessionClosed" if line.startswith("the session was closed") else "DeviceError"
        )
        assert result in line or kind == "SessionClosed", (call, line)
        assert "\n" not in line
        assert "run again" in line or kind == "SessionClosed"
    assert len({line for _, kind, line in outcome.told if kind == "DeviceError"}) <= 1
    assert outcome.seconds < 10
    assert outcome.unanswered == 0
    assert outcome.threads == []
    assert outcome.printed == ""


@pytest.mark.parametrize(
    ("overlap", "step"), [(True, 61), (False, 83), *slow((True, 7), (False, 7))]
)
def test_whichever_call_loses_the_gpu_the_session_ends_with_one_line(overlap, step, child):
    total = child.call(stream_that_fails, NEVER, 700, overlap).calls
    assert total > 10 * step
    told = 0
    for turn, after in enumerate([*range(0, 60, step // 5), *range(60, total, step)]):
        result = RESULTS[turn % len(RESULTS)]
        outcome = child.call(stream_that_fails, after, int(getattr(CUresult, result)), overlap)
        check(outcome, result)
        told += bool(outcome.told)
    assert told > turn / 2


@pytest.mark.parametrize(
    "function",
    [
        *("cuGraphInstantiateWithFlags", "cuStreamEndCapture", "cuGraphLaunch", "cuMemcpyAsync"),
        *slow("cuLaunchKernelEx", "cuLaunchHostFunc", "cuEventSynchronize", "cuStreamWaitEvent"),
        *slow("cuGraphExecDestroy", "cuStreamDestroy_v2", "cuMemFreeHost", "cuMemFreeAsync"),
    ],
)
def test_each_kind_of_call_may_lose_the_gpu(function, child):
    for after in (0, 3):
        outcome = child.call(stream_that_fails, after, 700, True, function)
        check(outcome, "CUDA_ERROR_ILLEGAL_ADDRESS")


@pytest.mark.parametrize("after", [300, *slow(700, 1500)])
def test_a_c_programs_calls_on_every_thread_return_with_the_error(after, child):
    outcome = child.call(shared_stream_that_fails, after, 700)
    kinds = {(call, kind) for call, kind, _ in outcome.told}
    assert ("push", "DeviceError") in kinds
    assert {kind for _, kind in kinds} <= {"DeviceError", "SessionClosed"}
    assert len({line for _, kind, line in outcome.told if kind == "DeviceError"}) == 1
    assert outcome.seconds < 20
    assert outcome.threads == []
