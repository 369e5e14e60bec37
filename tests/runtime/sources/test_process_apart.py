"""A program that embeds vicort gets no child, no signal and no zombie from the sources it opens."""

import os
import subprocess
import sys
import time
from pathlib import Path

import av

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
HOST = """
import os, signal, sys, threading
signals = []
signal.signal(signal.SIGCHLD, lambda *told: signals.append(told))
from vicort.runtime.sources import decoder_host, open_source
from vicort.runtime.sources.process_apart import start_apart
decoder_host.HOST.starter = start_apart
counts = []
def read():
    with open_source(sys.argv[1]) as source:
        counts.append(sum(1 for frame in source))
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
try:
    children = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    children = None
print(counts, signals, children, flush=True)
sys.stdin.read()
"""


def servers(session: int) -> list[int]:
    """Processes with that mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if f"VICORT_TEST_HOST={session}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def test_a_source_that_a_host_opens_is_read_by_no_child_of_it() -> None:
    mark = time.monotonic_ns()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(CLIP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"VICORT_TEST_HOST": str(mark)},
    )
    with av.open(str(CLIP)) as clip:
        frames = sum(1 for _ in clip.decode(video=0))
    assert host.stdout.readline() == f"{[frames] * 3} [] None\n"
    assert len(servers(mark)) >= 2  # the host and the server
    host.kill()
    host.wait()
    limit = time.monotonic() + 5
    while servers(mark) and time.monotonic() < limit:
        time.sleep(0.02)
    assert servers(mark) == []
