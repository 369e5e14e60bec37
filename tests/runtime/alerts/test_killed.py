"""`kill -9` while messages are sent, and a start with the same spool: nothing is lost."""

import json
import random
import threading
import time
from pathlib import Path

import pytest
from support.processes import kill, python
from support.receivers import HookServer, Reaction, until

TESTS = Path(__file__).parents[2]
SENDER = TESTS / "support" / "alert_sender.py"


def sender(folder, first, count, *urls):
    arguments = [SENDER, folder / "spool", first, count, *urls]
    return python(*map(str, arguments), text=True, environment={"PYTHONPATH": str(TESTS)})


def killed_after(seconds, folder, first, urls, least):
    """The next number, after a sender was killed that long after its start, or after it had sent
    `least` messages. What it sent last may have been written, and not said any more."""
    child = sender(folder, first, 100_000, *urls)
    try:
        assert child.stdout.readline() == "started\n", child.stderr.read()
        said = []
        reader = threading.Thread(
            target=lambda: [said.append(line) for line in child.stdout], daemon=True
        )
        reader.start()
        until(lambda: len(said) >= least)
        time.sleep(seconds)
    finally:
        child.kill()
        reader.join(20)
        kill(child)
        child.stderr.close()
    whole = [int(line) for line in said if line.endswith("\n")]
    return whole[-1] + 1 if whole else first


def check(running, acknowledged):
    """acknowledged: numbers of which `send` has returned."""
    seen = {}
    for request in running.asked:
        key = request.headers["idempotency-key"]
        number = json.loads(request.body)["n"]
        # another message may have the same number: of a `send` that was cut off by the kill
        assert key == f"key-{number}"
        assert seen.setdefault(key, request.body) == request.body
    numbers = [int(key.removeprefix("key-")) for key in seen]
    assert set(acknowledged) <= set(numbers), "messages were lost"
    assert numbers == sorted(numbers), "the order was changed"


def through(folder, moments, react, least=0):
    servers = [HookServer(react), HookServer()]
    urls = [each.url() for each in servers]
    number = 0
    for seconds in moments:
        number = killed_after(seconds, folder, number, urls, least)
    last = sender(folder, number, 3, *urls)
    try:
        assert last.wait(60) == 0, last.stderr.read()
        assert number >= least
        for running in servers:
            until(lambda running=running: f"key-{number + 2}" in running.sent_keys())
            check(running, range(number + 3))
    finally:
        kill(last)
        last.stderr.close()
        for running in servers:
            running.stop()


def test_nothing_is_lost_by_a_kill_and_what_comes_twice_has_the_same_key(folder):
    """One of the receivers fails and is slow, so that much waits when the process is killed."""

    def react(number):
        return Reaction(503 if number % 3 == 0 else 204, stall=0.01)

    through(folder, [0.05], react, least=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_at_many_moments(tmp_path, seed):
    """On a disk, with kills during the start too."""
    choose = random.Random(seed)
    codes = [choose.choice([204, 204, 204, 503, 429]) for _ in range(1000)]
    moments = [choose.choice([0.0, 0.01, 0.1, choose.uniform(0, 1.5)]) for _ in range(8)]

    def react(number):
        return Reaction(codes[number % 1000], stall=choose.choice([0, 0, 0.02]))

    through(tmp_path, moments, react)
