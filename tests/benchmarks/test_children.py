"""Work in a child process: its result, its errors, and its end with its parent."""

import os
import signal
import time

import pytest
from support.processes import python

from vicort.benchmarks.common.children import ChildFailed, in_child
from vicort.runtime.errors import ConfigError
from vicort.runtime.timely_end import LIMIT


def double(value):
    return 2 * value


def refuse():
    raise ConfigError("no such thing")


def fail():
    raise ValueError("two\nlines")


def unpicklable():
    return lambda: 0


def test_it_returns_what_the_work_returns():
    assert in_child(double, 21) == 42


def test_an_error_is_one_line_and_keeps_its_exit_code():
    with pytest.raises(ChildFailed, match=r"^no such thing$") as caught:
        in_child(refuse)
    assert caught.value.exit_code == ConfigError.exit_code


def test_an_error_of_a_library_is_one_line_with_its_type(capfd):
    with pytest.raises(ChildFailed, match=r"^ValueError: two lines$"):
        in_child(fail)
    assert "Traceback" in capfd.readouterr().err


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises(ChildFailed, match=r"pickle"):
        in_child(unpicklable)


def test_work_that_takes_too_long_is_ended():
    with pytest.raises(ChildFailed, match=r"longer than 0.5 s"):
        in_child(time.sleep, 600, seconds=0.5)


def test_a_process_that_dies_is_an_error():
    with pytest.raises(ChildFailed, match=r"exit code 3"):
        in_child(os._exit, 3)


# The main thread waits in a call that does not return, so that the process is ended from outside.
PARENT = """
import ctypes, threading
from vicort.benchmarks.common.children import in_child
from vicort.runtime.timely_end import TimelyEnd
work = "import time; print('working', flush=True); time.sleep(600)"
with TimelyEnd():
    threading.Thread(target=in_child, args=(exec, work), daemon=True).start()
    lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_ends_with_its_parent_however_that_ends(number, code):
    parent = python("-c", PARENT, text=True)
    assert parent.stdout.readline() == "working\n"
    parent.send_signal(number)
    assert parent.wait(timeout=LIMIT + 30) == code
    # the pipes end only when no process has them any more
    assert parent.communicate(timeout=30) == ("", "")
