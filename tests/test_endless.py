"""Streams without end: whatever the system, memory keeps to its budget, positions to the trained
range, the process to its size."""

import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.fake_engines import toy_model
from support.quick_engines import QuickEngineSet

from vicort.runtime.core import Frame, Sampling
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.errors import MemoryBudgetError
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session

ASK = "what color was the circle?"
RANGE = 600  # positions of the toy model: time is re-based some hundred times
GROWTH = 6e6  # bytes of resident memory that a stream may seem to grow by: what allocators do
BOUNDED = [name for name in known_systems() if name != "full-history"]


def small(name, engines):
    """A system with the least device memory that it takes, and as little behind it as makes it full
    soon."""
    system = load_system(name)
    host = 0 if system.memory.host_mb == 0 else 0.1
    smallest = system.with_(memory={"device_mb": 1e-6, "host_mb": host})
    try:
        Session(engines, smallest).close()
    except MemoryBudgetError as error:
        needed_mb = float(re.search(r"at least (\d+)", str(error))[1])
        smallest = smallest.with_(memory={"device_mb": needed_mb})
    return smallest


def pictures(count, start):
    """Repeated frames of ten colours, two a second."""
    shown = [np.full((8, 8, 3), 25 * color, np.uint8) for color in range(10)]
    return (
        Frame(shown[number // 6 % 10], Fraction(number, 2), number)
        for number in range(start, start + count)
    )


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flow(name, chunks):
    """A stream of so many chunks in ten parts, with a question behind each: pages, largest
    position, memory and answer behind each."""
    engines = QuickEngineSet(max_position=RANGE)
    states, system = [], small(name, engines)
    with Session(engines, system, overlap=False) as session:
        frames = chunks * session.inspect().chunk_frames // 10
        for part in range(10):
            for frame in pictures(frames, part * frames):
                session.push(frame)
            answer = session.ask(ASK, sampling=Sampling(max_tokens=3))
            memory = session.inspect().memory
            pools = [
                memory.pool,
                memory.tiers.host_pool,
                *([memory.long_term.pool] if memory.long_term else []),
            ]
            largest = max(
                int(pool.host_positions.max()) for pool in pools if pool.host_positions.size
            )
            states.append((session.summary().pages, largest, resident(), answer))
        assert session.summary().chunks >= chunks
    return states, system


def check(name, chunks):
    states, system = flow(name, chunks)
    pages, largest, memory, answers = zip(*states, strict=True)
    assert max(largest) < RANGE
    size = page_bytes(toy_model(), np.float32, by_head=system.long_term is not None)
    assert max(each["device"] for each in pages) * size <= system.budget.device_mb * 1e6
    assert max(each["host"] for each in pages) * size <= system.budget.host_mb * 1e6
    assert pages[-1]["host"] <= pages[-3]["host"] * 1.1 + 4  # it was full before the end
    assert max(memory[5:]) - min(memory[4:6]) < GROWTH
    assert answers[-1].seen_until > answers[0].seen_until
    assert answers[-1].memory_from is None or answers[-1].memory_from <= answers[-1].seen_until


@pytest.mark.parametrize("name", BOUNDED)
def test_a_long_stream_stays_within_its_bounds(name):
    check(name, 150)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BOUNDED)
def test_a_stream_of_tens_of_thousands_of_chunks_stays_within_its_bounds(name):
    check(name, 30_000)


def test_full_history_refuses_when_it_is_full_and_names_what_goes_on():
    with pytest.raises(MemoryBudgetError, match=r"forgets nothing.*--system distinct"):
        flow("full-history", 1_500)
