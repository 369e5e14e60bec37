"""Budgets that follow the model and the machine."""

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet, toy_model
from support.systems import FULL, system

from vicort.runtime.core import Sampling
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines import engine_set
from vicort.runtime.errors import ConfigError, MemoryBudgetError
from vicort.runtime.memory.budget import SHARE, MemoryRequest, fit_budget
from vicort.runtime.policies.retrieval import DistinctChunks, SimilarChunks
from vicort.runtime.policies.system import DEFAULT_SYSTEM, known_systems, load_system
from vicort.runtime.session import Session

BF16 = ml_dtypes.bfloat16
# the published 3B model: 36,864 bytes a token in bf16, 121 tokens a unit of 308x308 pixels
LARGE = {
    "layers": 36,
    "width": 2048,
    "query_heads": 16,
    "kv_heads": 2,
    "head_dim": 128,
    "patch": 14,
    "window": 4,
    "grid": (11, 11),
    "chunk_frames": 16,
    "page_tokens": 8,
    "max_rows": 1024,
    "rotary_sections": (16, 24, 24),
    "max_position": 128_000,
}
REAL = toy_model(**LARGE)
GB = 10**9
BY_HEAD = [name for name in known_systems() if load_system(name).long_term]  # on the CPU only
WINDOW_ONLY = ("codecflow", "simplestream", "streaming-window")


def fitted(name, machine_gb=16, model=REAL, dtype=BF16, gpu_gb=None, **request):
    machine = MachineMemory(int(machine_gb * GB), gpu_gb and int(gpu_gb * GB))
    return fit_budget(load_system(name), model, dtype, 20, machine, MemoryRequest(**request))


@pytest.mark.parametrize("name", known_systems())
def test_every_system_runs_the_real_model_by_default_on_a_machine_of_16_gb(name):
    found = fitted(name)
    assert found.given_up == ""
    assert sum(found.budget) <= 4000


@pytest.mark.parametrize(
    ("request_", "gpu_gb", "what"),
    [
        ({"device_mb": 16_001}, None, "this machine or its cgroup has 16000 MB"),
        ({"device_mb": 8000, "host_mb": 8001}, None, "this machine or its cgroup has 16000 MB"),
        ({"device_mb": 8001, "host_mb": 0, "sessions": 2}, None, "for each of 2 sessions: this"),
        ({"device_mb": 8001, "host_mb": 0}, 8, "the GPU has 8000 MB"),
        ({"device_mb": 4000, "host_mb": 16_001}, 8, "this machine or its cgroup has 16000 MB"),
    ],
)
def test_more_than_the_machine_has_is_refused(request_, gpu_gb, what):
    """The pages would be promised, and the system would kill the process later."""
    with pytest.raises(MemoryBudgetError, match=what) as caught:
        fitted("vicostream", gpu_gb=gpu_gb, **request_)
    assert str(caught.value).isprintable()
    fits = request_ | {"host_mb": 0, "device_mb": 7000}
    assert fitted("vicostream", gpu_gb=gpu_gb, **fits).budget.device_mb == 7000


@pytest.mark.parametrize("name", [name for name in known_systems() if name not in BY_HEAD])
@pytest.mark.parametrize("gigabytes", [8, 24, 64, 256])
def test_a_gpus_pages_are_a_share_of_the_gpus_memory(name, gigabytes):
    found = fitted(name, machine_gb=32, gpu_gb=gigabytes)
    assert found.budget.device_mb <= gigabytes * 250
    assert found.budget.host_mb <= 8000


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("name", [name for name in known_systems() if name not in BY_HEAD])
def test_a_gpus_pages_leave_room_for_engines_and_runs(name, sessions):
    """Of a GPU of 24 GB, of which they take all but 3."""
    engines, runs = 21 * GB - sessions * 130_000_000, 130_000_000
    machine = MachineMemory(32 * GB, 24 * GB, engines, runs)
    request = MemoryRequest(sessions=sessions)
    found = fit_budget(load_system(name), REAL, BF16, 20, machine, request)
    assert found == fit_budget(load_system(name), REAL, BF16, 20, machine, request)
    assert found.budget.device_mb * sessions <= 3000
    larger = MemoryRequest(3001 / sessions, 0, sessions=sessions)
    with pytest.raises(MemoryBudgetError, match="the GPU has 3000 MB beside engines and their"):
        fit_budget(load_system(name), REAL, BF16, 20, machine, larger)


def advised(error):
    """The budgets that an error names."""
    found = dict(re.findall(r"--(memory|host-memory) ([\d.]+)MB", str(error)))
    return {
        key: float(found[name])
        for key, name in (("device_mb", "memory"), ("host_mb", "host-memory"))
        if name in found
    }


@given(st.sampled_from(known_systems()), st.floats(0.1, 2000), st.integers(1, 9))
@example("distinct", 0.109375, 6)  # a share that holds no unit on the host
def test_the_sessions_of_a_run_take_a_quarter_of_the_machine_at_most(name, gigabytes, sessions):
    """Or say, with budgets that work, that it is too little."""
    try:
        found = fitted(name, gigabytes, sessions=sessions)
    except MemoryBudgetError as error:
        advice = advised(error)
    else:
        assert sum(found.budget) * sessions <= gigabytes * 250 + 1e-6
        assert found.system.memory.when_full == load_system(name).memory.when_full
        return
    if sum(advice.values()) * sessions > 1000 * gigabytes:
        with pytest.raises(MemoryBudgetError, match=" in all"):
            fitted(name, gigabytes, sessions=sessions, **advice)
        return
    assert sum(fitted(name, gigabytes, sessions=sessions, **advice).budget) > 0


@given(
    st.sampled_from(known_systems()),
    st.floats(1, 64),
    st.one_of(st.none(), st.floats(1, 3000)),
    st.one_of(st.none(), st.floats(0, 3000)),
)
def test_the_budgets_that_an_error_names_work(name, gigabytes, device_mb, host_mb):
    """At the latest the second time: an error is about one tier or about both."""
    request = {"device_mb": device_mb, "host_mb": host_mb}
    for _ in range(3):
        try:
            fitted(name, gigabytes, **request)
            return
        except MemoryBudgetError as error:
            if " in all" in str(error):  # an automatic budget takes at most a quarter of that
                asked = (request["device_mb"] or 0) + (request["host_mb"] or 0)
                assert asked > 750 * gigabytes
                return
            advice = advised(error)
            if "leave it out" in str(error):
                advice = {"host_mb": None}
        assert advice
        request |= advice
    pytest.fail(f"{name}: {request}")


@given(st.sampled_from(known_systems()), st.floats(1, 500), st.floats(1, 2))
def test_a_larger_machine_never_gives_less(name, gigabytes, factor):
    try:
        smaller = fitted(name, gigabytes)
    except MemoryBudgetError:
        return
    larger = fitted(name, gigabytes * factor)
    assert sum(larger.budget) >= sum(smaller.budget)
    assert larger.units is None or larger.units >= smaller.units


@pytest.mark.parametrize("name", known_systems())
def test_what_is_printed_asks_for_the_same(name):
    found = fitted(name)
    assert fitted(name, machine_gb=999, **advised(found.event(2).options)) == found


@pytest.mark.parametrize("name", WINDOW_ONLY)
def test_a_system_that_keeps_a_window_takes_no_more_than_that(name):
    found = fitted(name, machine_gb=1000)
    assert found.budget == fitted(name, machine_gb=16).budget
    with pytest.raises(MemoryBudgetError):
        fitted(name, device_mb=found.budget.device_mb - 1)


def test_a_small_model_does_not_take_a_share_of_the_machine_that_it_never_fills():
    """12 hours, nothing dropped, is what an automatic budget has room for at the most."""
    model = toy_model()
    found = fitted("vicostream", 1000, model, np.float32)
    assert found.event(model.fps).seconds == pytest.approx(12 * 3600, rel=0.05)
    unit = -(-model.unit_tokens // model.page_tokens) * page_bytes(model, np.float32)
    assert sum(found.budget) * 1e6 < 1.2 * 12 * 3600 * unit


@pytest.mark.parametrize("model", [REAL, toy_model()], ids=["real", "toy"])
def test_a_system_with_a_number_of_tokens_remembers_about_so_many(model):
    """In whole MB, and one chunk more where that is larger."""
    found = fitted("timechat-online", 1000, model, np.float32)
    of_mb = 1e6 / page_bytes(model, np.float32) * model.page_tokens
    assert abs(found.units * model.unit_tokens - 6000) <= of_mb + model.unit_tokens
    assert found.budget.host_mb == 0


def test_a_number_of_a_file_or_a_caller_changes_nothing_in_the_other_tier():
    machine = MachineMemory(16 * GB)
    device_mb, host_mb = fitted("vicostream").budget
    chosen = load_system("vicostream").with_(memory={"device_mb": 3000})
    assert fit_budget(chosen, REAL, BF16, 20, machine).budget == (3000, host_mb)
    assert fitted("vicostream", device_mb=4000).budget == (4000, host_mb)
    assert fitted("vicostream", host_mb=7000).budget == (device_mb, 7000)
    both = chosen.with_(memory={"host_mb": 500})
    assert fit_budget(both, REAL, BF16, 20, machine).system == both


def test_without_a_host_tier_the_device_gets_the_share():
    assert fitted("vicostream", host_mb=0).budget == (4000, 0)
    assert fitted("vicostream", host_mb=0, device_mb=800).budget == (800, 0)


@pytest.mark.parametrize("host_mb", [0.5, 4])
def test_a_host_tier_that_does_not_hold_a_unit_is_refused(host_mb):
    """The stream would wait for ever for room in it."""
    with pytest.raises(MemoryBudgetError, match="does not hold two frames") as refused:
        fitted("uniform", host_mb=host_mb)
    assert fitted("uniform", **advised(refused.value)).budget.host_mb > host_mb


def test_five_cameras_on_a_machine_of_16_gb_have_the_default_system():
    found = fitted(DEFAULT_SYSTEM, sessions=5)
    assert sum(found.budget) <= 800
    assert "read at most" in found.given_up


def test_the_default_system_gives_up_nothing_for_one_camera_on_a_machine_of_16_gb():
    found = fitted(DEFAULT_SYSTEM)
    assert found.given_up == ""
    assert sum(found.budget) <= SHARE * 16_000


def test_the_page_locked_memory_of_a_gpu_has_a_bound():
    assert fitted("vicostream", machine_gb=256, gpu_gb=80).budget == (20_000, 8000)


@pytest.mark.parametrize(
    ("name", "seconds"), [("simplestream", 2), ("streaming-window", 16), ("codecflow", 32)]
)
def test_what_a_window_holds_is_the_window(name, seconds):
    for request in ({}, {"device_mb": 4000}):
        assert fitted(name, **request).event(2).seconds == seconds
    assert fitted(name).event(8).seconds == seconds / 4
    assert fitted(name).event(None).seconds is None


def test_smaller_chunks_of_a_system_count_when_questions_read_less():
    chosen = load_system("vicostream").with_(chunk={"frames": 4})
    request = MemoryRequest(device_mb=700, host_mb=2000)
    found = fit_budget(chosen, REAL, BF16, 20, MachineMemory(16 * GB), request)
    units = int(re.search(r"at most (\d+) units instead of 66", found.given_up)[1])
    assert found.system.retrieval.top == units // 2 - 1
    assert 2 < found.system.retrieval.top < 32


def test_questions_read_less_where_the_budget_does_not_hold_all_and_it_says_so():
    found = fitted("vicostream", device_mb=1000, host_mb=4000)
    assert isinstance(found.system.retrieval, SimilarChunks)
    assert 1 <= found.system.retrieval.top < 32
    assert f"at most {found.system.retrieval.max_units(8)} units instead of 264" in found.given_up
    enough = float(re.search(r"--memory (\d+)MB would hold all", found.given_up)[1])
    assert fitted("vicostream", device_mb=enough, host_mb=4000).given_up == ""
    assert fitted("vicostream", device_mb=enough - 1, host_mb=4000).given_up != ""


@pytest.mark.parametrize("name", known_systems())
def test_the_smallest_budget_that_an_error_names_works_and_no_smaller(name):
    with pytest.raises(MemoryBudgetError, match="a device budget of 1 MB is too small") as refused:
        fitted(name, machine_gb=64, device_mb=1)
    (smallest,) = advised(refused.value).values()
    fitted(name, machine_gb=64, device_mb=smallest)
    with pytest.raises(MemoryBudgetError):
        fitted(name, machine_gb=64, device_mb=smallest - 1)


def test_a_number_in_a_file_that_is_too_small_changes_nothing_silently():
    small = load_system("vicostream").with_(memory={"device_mb": 1000, "host_mb": 4000})
    machine = MachineMemory(64 * GB)
    with pytest.raises(MemoryBudgetError, match="a device budget of 1000 MB is too small") as error:
        fit_budget(small, REAL, BF16, 20, machine)
    enough = float(re.search(r"set memory.device_mb to at least (\d+)", str(error.value))[1])
    larger = small.with_(memory={"device_mb": enough})
    assert fit_budget(larger, REAL, BF16, 20, machine).system == larger
    request = MemoryRequest(**advised(error.value))
    assert "read at most" in fit_budget(small, REAL, BF16, 20, machine, request).given_up


def test_host_memory_for_a_system_that_uses_none_is_refused():
    with pytest.raises(MemoryBudgetError, match="--host-memory 5MB: system full-history keeps"):
        fitted("full-history", host_mb=5)


def test_a_session_takes_the_budget_it_is_given_and_its_summary_tells():
    chosen = system(memory="{when_full: drop-oldest}")
    request = MemoryRequest(device_mb=3)
    with Session(
        FakeEngineSet(), chosen, overlap=False, memory=request, sampling=Sampling(max_tokens=2)
    ) as session:
        assert session.summary().budget_mb == {"device": 3, "host": 0}
        assert session.system.budget == (3, 0)


def test_a_system_without_numbers_has_an_automatic_device_budget_and_no_host():
    chosen = system(**FULL | {"memory": "{when_full: refuse}"})
    assert (chosen.memory.device_mb, chosen.memory.host_mb) == (None, 0)
    with pytest.raises(ValueError, match="automatic budget"):
        chosen.budget  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": {"device_mb": 1}}, "a device budget of 1 MB is too small"),
        ({"retrieval": DistinctChunks(units=1)}, "its 1 latest chunks may hold"),
        ({"chunk": {"frames": 64}}, "takes chunks of 64 frames"),
    ],
)
def test_what_a_session_would_refuse_is_refused_before_engines_are_loaded(
    changes, words, tiny_engines, monkeypatch
):
    monkeypatch.setattr(engine_set, "_load", lambda *_: pytest.fail("an engine was loaded"))
    with pytest.raises((MemoryBudgetError, ConfigError), match=words):
        Session.open(tiny_engines, load_system("vicostream").with_(**changes))
