"""What sessions held goes back to the system when they are gone."""

import ctypes
import json
import subprocess
import sys

import pytest

# prints resident MB: after one session was opened and freed, while many are open, and after them
MANY_SESSIONS = """
import json, sys
from fractions import Fraction
import numpy as np
from vicort.runtime import Frame, Question, Session
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.memory.budget import MemoryRequest

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

def watch(count):
    sessions = [
        Session.open(engines, memory=MemoryRequest(20.0, 20.0), threads=1) for _ in range(count)
    ]
    for session in sessions:
        for i in range(16):
            session.push(Frame(picture, Fraction(i, 2), i))
        session.finish()
        session.ask("what is there now?")
    most = resident()
    for session in sessions:
        session.close()
    return most

picture = np.zeros((112, 112, 3), np.uint8)
engines = EngineSet.open(sys.argv[1], threads=1)
watch(2)
before = resident()
most = watch(8)
print(json.dumps([before, most, resident()]))
"""


def test_memory_of_sessions_that_are_gone_goes_back_to_the_system(tiny_engines):
    done = subprocess.run(
        [sys.executable, "-c", MANY_SESSIONS, str(tiny_engines)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    before, most, after = json.loads(done.stdout)
    assert most - before > 20
    assert after - before < (most - before) / 4


# prints the bytes that malloc has given out and Python's objects, after some cycles and after more
CYCLES = """
import ctypes, gc, json, sys
from fractions import Fraction
import numpy as np
from vicort.runtime import Frame, Session
from vicort.runtime.engines.engine_set import EngineSet

class Allocated(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Allocated
picture = np.zeros((112, 112, 3), np.uint8)

def use(times):
    for _ in range(times):
        with EngineSet.open(sys.argv[1], threads=1) as engines:
            with Session.open(engines, threads=1) as session:
                for i in range(8):
                    session.push(Frame(picture, Fraction(i, 2), i))
                session.ask("what is there now?")
    gc.collect()
    now = libc.mallinfo2()
    return now.uordblks + now.hblkhd, len(gc.get_objects())

print(json.dumps([use(2), use(3)]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library")
@pytest.mark.parametrize(
    "backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_opening_and_closing_again_and_again_holds_no_more(build_tiny, backend):
    """Resident memory follows what malloc keeps for itself, which no cycle determines."""
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, str(build_tiny(backend))],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (before, objects), (after, objects_after) = json.loads(done.stdout)
    assert after - before < 500_000
    assert objects_after - objects < 200
