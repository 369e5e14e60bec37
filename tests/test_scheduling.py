"""Encoders may change how a thread is scheduled; afterwards it is as it was."""

import os

import pytest
from fuzzing.fuzz_files import _write
from support.scheduling import scheduling_kept


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be made a realtime process")
@pytest.mark.timeout(60)
def test_a_thread_that_was_made_realtime_is_none_afterwards():
    before = os.sched_getscheduler(0)
    with scheduling_kept():
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    assert os.sched_getscheduler(0) == before


def test_writing_av1_leaves_the_scheduling_as_it_was(tmp_path):
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        _write(tmp_path / "a.mp4", "libsvtav1", "yuv420p", "mp4", 2)
    except ValueError as error:
        pytest.skip(f"no encoder: {error}")
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
