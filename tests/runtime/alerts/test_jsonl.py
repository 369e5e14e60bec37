"""Events as lines of a file."""

import fcntl
import json
import os
import time

import pytest
from support.alert_messages import Said, count, delivering, message
from support.receivers import until

from vicort.runtime.alerts import jsonl


def sent(folder, *messages):
    with delivering(folder, {"jsonl": str(folder / "a.jsonl")}) as delivery:
        for each in messages:
            delivery.send(each)
        until(lambda: count(delivery, "waiting") == 0)


def test_each_event_is_a_line(folder):
    messages = [message(0, b"jpeg", text="ä\n\u2028"), message(1)]
    sent(folder, messages[0])
    sent(folder, messages[1])
    lines = (folder / "a.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [each.document() for each in messages]
    assert lines[-1] == b""


def test_a_line_that_was_cut_costs_no_other_line(folder):
    (folder / "a.jsonl").write_text('{"key": "key-0"}\n{"key": "ke')
    sent(folder, message(1))
    first, cut, last, _ = (folder / "a.jsonl").read_text().split("\n")
    assert (json.loads(first)["key"], cut) == ("key-0", '{"key": "ke')
    assert json.loads(last)["key"] == "key-1"


def test_half_a_line_on_a_full_disk_is_taken_back(folder, monkeypatch):
    real, full = os.write, [True]

    def write(file, data):
        if full and data.startswith(b'{"key":"key-1"'):
            if len(data) <= 20:
                raise AssertionError
            monkeypatch.setattr(os, "write", refuse)
            return real(file, data[:20])
        return real(file, data)

    def refuse(file, data):
        full.clear()
        monkeypatch.setattr(os, "write", write)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonl.os, "write", write)
    with delivering(folder, {"jsonl": str(folder / "a.jsonl")}) as delivery:
        delivery.send(message(0))
        delivery.send(message(1))
        until(lambda: count(delivery, "delivered") == 2)
        assert "No space left" in count(delivery, "last_error")
    lines = (folder / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["key-0", "key-1"]


def test_a_file_that_another_program_has_locked_is_waited_for(folder):
    with (folder / "a.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with delivering(folder, {"jsonl": str(folder / "a.jsonl")}) as delivery:
            delivery.send(message(0))
            time.sleep(0.1)
            assert count(delivery, "waiting") == 1
            other.close()
            until(lambda: count(delivery, "delivered"))


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "nowhere"])
def test_other_things_than_files_are_warned_about(folder, kind):
    path = folder / "a.jsonl"
    if kind == "link":
        path.symlink_to(folder / "other")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = folder / "no" / "a.jsonl"
    with delivering(folder, {"jsonl": str(path)}, warn=(warn := Said())) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "failed_tries"))
        assert "cannot be written" in warn[0]
        assert count(delivery, "waiting") == 1
    assert not (folder / "other").exists()
