"""Memory alone: leases hold, moves wait for them, and what is recalled is what was written."""

import threading
from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import toy_model
from support.systems import system

from vicort.runtime.core import Chunk, Frame
from vicort.runtime.devices.host import HostDevice, InlineStream
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.frame_grid import Grid
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.memory_plan import SPARE_CHUNKS
from vicort.runtime.memory.page_tables import pad_table
from vicort.runtime.memory.timeline import Timeline

PICTURE = np.zeros((1, 1, 3), np.uint8)
MODEL = toy_model(chunk_frames=4)
STREAM = InlineStream("test")


def chunk(index):
    frames = tuple(Frame(PICTURE, Fraction(4 * index + i, 2), 4 * index + i) for i in range(4))
    return Chunk(index, 2 * index, frames, Grid(2, 2))


def filled(count, memory="{device_mb: 0.92, host_mb: 0.01, when_full: drop-oldest}"):
    """A memory in which every key of unit u is u, every value -u."""
    held = Memory(
        HostDevice(threads=False),
        MODEL,
        system(memory=memory),
        Timeline(MODEL, 0, text_tokens=10),
        np.float32,
        StageClock(None),
    )
    for index in range(count):
        units = np.repeat([2 * index, 2 * index + 1], 4).astype(np.float32)
        k = np.broadcast_to(
            units[None, :, None, None], (MODEL.layers, 8, MODEL.kv_heads, MODEL.head_dim)
        )
        held.write_chunk(
            chunk(index),
            [4, 4],
            k,
            -k,
            np.repeat(units[:, None], 3, 1).astype(np.int32),
            np.ones(MODEL.width, np.float32),
            STREAM,
        )
    return held


def place(memory, index):
    k = np.full((MODEL.layers, 8, MODEL.kv_heads, MODEL.head_dim), 999, np.float32)
    memory.write_chunk(
        chunk(index),
        [4, 4],
        k,
        k,
        np.full((8, 3), index, np.int32),
        np.ones(MODEL.width, np.float32),
        STREAM,
    )


def test_pages_on_either_tier_are_recalled_in_the_order_of_the_stream():
    memory = filled(60)
    assert memory.tiers.host_slots.live
    units = [number for chunk in memory.chunks for number in chunk.units]
    lease = memory.lease(units)
    scratch = memory.tiers.scratch_slots.allocate(lease.recalls)
    slots = lease.slots(scratch, STREAM)
    assert [page.unit for page in lease.pages] == units
    assert memory.pool.data[slots, 0, 0, 0, 0, 0].tolist() == units
    assert memory.pool.data[slots, -1, -1, 1, -1, -1].tolist() == [-unit for unit in units]
    assert memory.pool.cell_positions[slots, 0, 0, 0, 0].tolist() == units


def test_a_leased_page_is_never_overwritten_however_far_the_stream_goes():
    memory = filled(60, "{device_mb: 0.92, when_full: drop-oldest}")
    units = [number for held in memory.chunks for number in held.units][: 2 * SPARE_CHUNKS]
    lease = memory.lease(units)
    before = memory.pool.data[lease.slots([], STREAM)].copy()
    for index in range(60, 60 + SPARE_CHUNKS):  # the spare slots: the stream goes on
        place(memory, index)
    assert not set(units) & set(memory.tiers.units)
    np.testing.assert_array_equal(memory.pool.data[lease.slots([], STREAM)], before)
    more = threading.Thread(target=lambda: [place(memory, index) for index in range(90, 120)])
    more.start()  # now it waits for the question, which reads on
    more.join(0.1)
    np.testing.assert_array_equal(memory.pool.data[lease.slots([], STREAM)], before)
    lease.release()
    more.join(10)
    assert not more.is_alive()


def test_time_is_not_moved_under_a_question_that_reads_it():
    memory = filled(4)
    lease, moved = memory.lease([0, 1]), threading.Event()
    thread = threading.Thread(target=lambda: (memory.rebase(3, STREAM), moved.set()))
    thread.start()
    assert not moved.wait(0.1)
    assert memory.tiers.first_position(5).tolist() == [5, 5, 5]
    lease.release()
    assert moved.wait(5)
    thread.join()
    assert memory.tiers.first_position(5).tolist() == [2, 5, 5]


def test_a_unit_of_which_nothing_was_kept_takes_no_page():
    memory = filled(1)
    k = np.zeros((MODEL.layers, 4, MODEL.kv_heads, MODEL.head_dim), np.float32)
    memory.write_chunk(
        chunk(1), [4, 0], k, k, np.zeros((4, 3), np.int32), np.ones(MODEL.width, np.float32), STREAM
    )
    assert [(held.units, held.pages) for held in memory.chunks] == [([0, 1], 2), ([2], 1)]


def test_what_is_known_of_a_chunk_goes_with_its_units():
    memory = filled(60, "{device_mb: 0.92, when_full: thin-evenly}")
    held = list(memory.chunks)
    assert any(len(chunk.units) == 1 for chunk in held)
    assert {unit for chunk in held for unit in chunk.units} == set(memory.tiers.units)
    assert all(
        chunk.pages == sum(len(memory.tiers.locations(unit)) for unit in chunk.units)
        for chunk in held
    )


@pytest.mark.parametrize(
    ("count", "length"), [(0, 8), (1, 8), (8, 8), (9, 16), (128, 128), (129, 144), (257, 288)]
)
def test_tables_grow_in_steps_and_are_filled_up_with_none(count, length):
    table = pad_table(range(count))
    assert table.shape == (1, 1, length)
    assert table.reshape(-1).tolist() == [*range(count), *[-1] * (length - count)]


@pytest.mark.parametrize("count", [0, 2])
def test_as_many_pages_are_copied_as_there_are_slots_for(count):
    memory = filled(4)
    with pytest.raises(ValueError, match=f"1 pages cannot be copied to {count} slots"):
        memory.pool.copy_from(memory.pool, [0], range(count), STREAM)
