"""Children that a command waits for end with it, and remove what they have half written."""

import signal
import sys
import threading
import time

import pytest

from vicort.runtime.child_command import run_child

CHILD = """
import pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path(sys.argv[1]).unlink()
    sys.exit(3)
if sys.argv[2] == "listens":
    signal.signal(signal.SIGTERM, end)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("half")
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["listens", "is deaf"])
def test_an_interrupted_command_ends_its_child_and_lets_it_remove_what_is_half(tmp_path, kind):
    half = tmp_path / "half"

    def interrupt() -> None:
        while not half.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", CHILD, str(half), kind])
    assert time.monotonic() - began < 30
    assert half.exists() == (kind == "is deaf")


def test_a_child_that_ends_gives_its_output_and_code():
    done = run_child([sys.executable, "-c", "print('a'); raise SystemExit(7)"], stdout=-1)
    assert (done.stdout, done.returncode) == ("a\n", 7)
