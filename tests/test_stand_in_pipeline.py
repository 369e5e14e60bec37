"""The whole runtime over the real cuda.core and a stand-in for NVIDIA's driver, with the real
TensorRT engines and the real cubins."""

import pytest
from support.reported_streams import SHARED
from support.stand_in_driver.streams import (
    alive_after_sessions,
    compare,
    compare_shared_vision,
    compare_sizes,
)

ROUNDS = 20


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["spilling", *SHARED])
def test_every_system_says_over_cuda_core_what_it_says_on_the_host_to_the_last_bit(
    name, overlap, gpu_child
):
    is_equal, replays, refusals = gpu_child.call(compare, name, overlap)
    assert is_equal
    assert replays
    assert not refusals


@pytest.mark.parametrize("overlap", [True, False])
def test_frames_of_any_size_say_over_cuda_core_what_they_say_on_the_host(overlap, gpu_child):
    is_equal, replays, refusals = gpu_child.call(compare_sizes, overlap)
    assert is_equal
    assert replays
    assert not refusals


def test_streams_at_the_same_time_share_vision_over_cuda_core(gpu_child):
    is_equal, replays, refusals = gpu_child.call(compare_shared_vision, 3)
    assert is_equal
    assert replays
    assert not refusals


def test_sessions_one_after_another_leave_nothing_in_the_driver(gpu_child):
    before, first, *later = gpu_child.call(alive_after_sessions, ROUNDS)
    assert later == [first] * (ROUNDS - 1)
    for name in ("graphs", "executables", "streams"):
        assert first[name] == before[name]
