"""What sessions held goes back to the system when they are gone."""

import json
import subprocess
import sys

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
