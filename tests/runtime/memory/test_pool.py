"""Pages: how tokens fall into them, and who holds which slot."""

import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.fake_engines import toy_model

from vicort.runtime.devices.host import HostDevice, InlineStream
from vicort.runtime.devices.int8_vectors import quantised
from vicort.runtime.devices.pages import EMPTY, page_bytes
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.slots import Slots

STREAM = InlineStream("test")


@given(st.lists(st.integers(0, 13), max_size=8), st.integers(1, 6))
def test_a_page_never_holds_tokens_of_two_runs_and_all_but_a_runs_last_are_full(lengths, size):
    layout = Layout.of(lengths, size)
    run_of_token = np.repeat(np.arange(len(lengths)), lengths)
    assert len(layout.page) == len(layout.cell) == sum(lengths)
    for page, (tokens, run) in enumerate(zip(layout.tokens, layout.run, strict=True)):
        members = layout.page == page
        assert members.sum() == tokens > 0
        assert set(run_of_token[members]) == {run}
        assert layout.cell[members].tolist() == list(range(tokens))
        last_of_run = page + 1 == len(layout.run) or layout.run[page + 1] != run
        assert tokens == size or last_of_run


def test_written_tokens_lie_in_their_cells_and_nowhere_else():
    model, random = toy_model(), np.random.default_rng(0)
    pool = HostDevice(threads=False).pool(model, 5, np.float32)
    pool.data[:] = 7
    k, v = random.normal(size=(2, model.layers, 3, model.kv_heads, model.head_dim)).astype(
        np.float32
    )
    slots, cells, places = np.array([4, 4, 1]), np.array([0, 3, 2]), np.arange(9).reshape(3, 3)
    pool.write(slots, cells, k, v, places, STREAM)
    for token, (slot, cell) in enumerate(zip(slots, cells, strict=True)):
        np.testing.assert_array_equal(pool.data[slot, :, :, 0, cell], k[:, token])
        np.testing.assert_array_equal(pool.data[slot, :, :, 1, cell], v[:, token])
        np.testing.assert_array_equal(pool.cell_positions[slot, 0, 0, cell], places[token])
    assert (pool.cell_positions[..., 0] != EMPTY).sum() == 3
    assert (pool.data == 7).sum() == pool.data.size - 2 * k.size


def test_shifting_moves_time_only_where_there_are_tokens():
    pool = HostDevice(threads=False).pool(toy_model(), 2, np.float32)
    pool.cell_positions[0, 0, 0, 0] = (50, 3, 4)
    pool.cell_positions[0, 0, 0, 1] = (6, 3, 4)
    pool.shift([0], np.array([10, 0, 0]), 2, STREAM)
    assert pool.cell_positions[0, 0, 0].tolist() == [
        [40, 3, 4],
        [2, 3, 4],
        [EMPTY] * 3,
        [EMPTY] * 3,
    ]


def test_the_bytes_of_a_page_are_those_of_its_arrays():
    model = toy_model()
    pool = HostDevice(threads=False).pool(model, 3, np.float32)
    assert page_bytes(model, np.float32) * 3 == pool.data.nbytes + pool.cell_positions.nbytes


def test_int8_pages_hold_quantised_tokens_and_their_scales_move_along():
    model, random, device = toy_model(), np.random.default_rng(0), HostDevice(threads=False)
    near, far = device.pool(model, 5, np.int8), device.host_pool(model, 2, np.int8)
    shape = (2, model.layers, 3, model.kv_heads, model.head_dim)
    k, v = new = random.normal(size=shape).astype(np.float32)
    slots, cells, places = np.array([4, 4, 1]), np.array([0, 3, 2]), np.arange(9).reshape(3, 3)
    near.write(slots, cells, k, v, places, STREAM)
    far.copy_from(near, [4, 1], [0, 1], STREAM)
    numbers, scales = quantised(new)
    for pool, moved in ((near, slots), (far, np.array([0, 0, 1]))):
        for token, (slot, cell) in enumerate(zip(moved, cells, strict=True)):
            found = pool.data[slot, :, :, :, cell], pool.scales[slot, :, :, :, cell]
            np.testing.assert_array_equal(found[0], numbers[:, :, token].transpose(1, 2, 0, 3))
            np.testing.assert_array_equal(found[1], scales[:, :, token].transpose(1, 2, 0))
    arrays = (near.data, near.scales, near.cell_positions)
    assert page_bytes(model, np.int8) * 5 == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize(("dtype", "least"), [(np.float32, 3.8), (ml_dtypes.bfloat16, 1.9)])
def test_a_budget_holds_about_four_or_two_times_the_pages_in_int8(dtype, least):
    model = toy_model().model_copy(update={"head_dim": 128, "layers": 36, "kv_heads": 2})
    assert page_bytes(model, dtype) / page_bytes(model, np.int8) > least


class SlotsMachine(RuleBasedStateMachine):
    """Slots against a plain model: sets of live, leased and abandoned slots."""

    def __init__(self):
        super().__init__()
        self.slots = Slots(10, 6)
        self.live: set[int] = set()
        self.leases: list[list[int]] = []

    @property
    def leased(self):
        return {slot for lease in self.leases for slot in lease}

    @property
    def free(self):
        return set(range(10, 16)) - self.live - self.leased

    @rule(count=st.integers(1, 3))
    def take(self, count):
        if count <= len(self.free):
            taken = self.slots.allocate(count)
            assert set(taken) <= self.free
            self.live |= set(taken)

    @rule(data=st.data())
    def free_some(self, data):
        if self.live:
            slot = data.draw(st.sampled_from(sorted(self.live)))
            self.slots.free([slot])
            self.live.remove(slot)

    @rule(data=st.data())
    def lease(self, data):
        chosen = (
            data.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True))
            if self.live
            else []
        )
        self.slots.lease(chosen)
        self.leases.append(chosen)

    @rule()
    def release(self):
        if self.leases:
            self.slots.release(self.leases.pop())

    @invariant()
    def counts_agree(self):
        assert self.slots.live == len(self.live)


TestSlots = SlotsMachine.TestCase


def test_taking_waits_until_a_lease_ends():
    slots = Slots(0, 2)
    first = slots.allocate(2)
    slots.lease(first)
    slots.free(first)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slots.allocate, 1)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.05)
        slots.release(first)
        assert waiting.result(timeout=5)[0] in first


def test_closing_wakes_whoever_waits():
    slots = Slots(0, 1)
    slots.allocate(1)
    failures = []

    def wait():
        try:
            slots.allocate(1)
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    slots.close()
    thread.join(timeout=5)
    assert failures
