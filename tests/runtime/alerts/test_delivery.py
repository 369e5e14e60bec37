"""A delivery as a whole: its start, its state, its end, and what it never shows."""

import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.alert_messages import SOON, TARGETS, Said, count, delivering, message
from support.network_watch import watched
from support.processes import kill, python
from support.receivers import HookServer, Reaction, until
from support.servers import running as served
from support.sizes import slow

from vicort.runtime.alerts import courier
from vicort.runtime.alerts.back_off import BackOff
from vicort.runtime.alerts.delivery import Delivery
from vicort.runtime.alerts.message import Message
from vicort.runtime.alerts.spool import Spool
from vicort.runtime.errors import ConfigError
from vicort.runtime.packages import install_command

TESTS = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from support.alert_messages import delivering
with delivering(Path(sys.argv[1]), {"jsonl": "a"}, starts=False):
    print("held", flush=True)
    time.sleep(60)
"""
SILENT = """
import sys, time
from pathlib import Path
from support.alert_messages import delivering, message
with delivering(Path(sys.argv[1]), {"jsonl": "a"}, *map(eval, sys.argv[2:]), close=1) as delivery:
    import httpx, paho.mqtt.client, certifi
    delivery.send(message(0))
    time.sleep(0.3)
"""


def jsonl(folder, name="a.jsonl"):
    return {"jsonl": str(folder / name)}


def lines(folder, name="a.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_what_was_sent_before_the_start_is_delivered_too(folder):
    with delivering(folder, jsonl(folder), starts=False) as delivery:
        delivery.send(message(0))
        assert count(delivery, "waiting") == 1
        delivery.start()
        until(lambda: count(delivery, "delivered"))
    assert [each["n"] for each in lines(folder)] == [0]


def test_what_a_run_leaves_the_next_one_delivers(folder):
    with delivering(folder, jsonl(folder), starts=False) as delivery:
        for number in range(3):
            delivery.send(message(number))
    with delivering(folder, jsonl(folder)) as delivery:
        until(lambda: count(delivery, "delivered") == 3)
    assert [each["n"] for each in lines(folder)] == [0, 1, 2]


@pytest.mark.parametrize(
    "error",
    [sqlite3.OperationalError("disk I/O error"), sqlite3.ProgrammingError("it is closed")],
)
def test_a_spool_that_cannot_be_read_for_a_while_loses_nothing(folder, monkeypatch, error):
    def read(spool, number):
        if len(failed) < 3:
            failed.append(number)
            raise error
        return whole(spool, number)

    failed, whole = [], Spool.read
    monkeypatch.setattr(Spool, "read", read)
    with delivering(folder, jsonl(folder), warn=(warn := Said())) as delivery:
        for number in range(3):
            delivery.send(message(number))
        until(lambda: count(delivery, "delivered") == 3)
        assert (count(delivery, "failed_tries"), count(delivery, "unreadable")) == (3, 0)
    assert [each["n"] for each in lines(folder)] == [0, 1, 2]
    assert [f"the spool cannot be read: {error}" in line for line in warn] == [True]


def test_each_alert_has_its_own_targets(folder):
    named = {name: TARGETS.validate_python([jsonl(folder, name)]) for name in ("parcel", "car")} | {
        "nobody": []
    }
    delivery = Delivery(named, folder / "spool", spool_bytes=1 << 20, warn=Said())
    delivery.start()
    for name in ("car", "nobody", "parcel", "car"):
        delivery.send(Message(f"{name}-key", name, "front", "fired", {}))
    delivery.close(20)
    assert len(lines(folder, "car")) == 2
    assert len(lines(folder, "parcel")) == 1
    assert delivery.state()["spool"]["waiting"] == 0


def test_alerts_that_name_one_target_are_delivered_in_one_order_and_warned_about_once(folder):
    (target,) = TARGETS.validate_python([jsonl(folder / "later")])
    warn = Said()
    named = {name: [target] for name in ("parcel", "car", "dog")}
    delivery = Delivery(named, folder / "spool", spool_bytes=1 << 20, warn=warn, back_off=SOON)
    delivery.start()
    until(lambda: warn)
    for number, name in enumerate(["dog", "car", "parcel"] * 3):
        delivery.send(Message(f"key-{number}", name, "front", "fired", {"n": number}))
    (folder / "later").mkdir()
    delivery.close(20)
    assert [each["n"] for each in lines(folder / "later")] == list(range(9))
    assert ["parcel and 2 more: jsonl" in line for line in warn] == [True]


def test_what_waits_stays_that_of_its_alert_whatever_others_there_are(folder):
    """Two alerts, one webhook with other options of each; then the first alert is removed."""
    with served(HookServer()) as running:
        url = {"webhook": running.url(), "allow_private": True}
        a, b = TARGETS.validate_python([url | {"picture": "none"}, url])
        options = {"spool_bytes": 1 << 20, "back_off": SOON}
        delivery = Delivery({"a": [a], "b": [b]}, folder / "spool", warn=Said(), **options)
        for alert in "ab":
            delivery.send(Message(f"key-{alert}", alert, "front", "fired", {}, b"jpeg"))
        delivery.close(0)
        for named, key in (({"b": [b]}, "key-b"), ({"b": [b], "a": [b]}, "key-a")):
            delivery = Delivery(named, folder / "spool", warn=(warn := Said()), **options)
            delivery.start()
            delivery.close(20)
            assert running.sent_keys()[-1] == key
            assert ["1 of the messages in the spool" in line for line in warn] == (
                [True] if key == "key-b" else []
            )
    assert [b"picture_base64" in each.body for each in running.asked] == [True, True]


def test_a_target_that_is_away_and_gets_nothing_is_looked_for_again(folder, monkeypatch):
    monkeypatch.setattr(courier, "IDLE_SECONDS", 0.02)
    running = HookServer()
    running.stop()
    target = {"webhook": running.url(), "allow_private": True}
    with delivering(folder, target, warn=(warn := Said())) as delivery:
        until(lambda: warn)
        time.sleep(0.2)
        assert not count(delivery, "reachable")
        running.start()
        until(lambda: count(delivery, "reachable"))
        assert len(warn) == 1
    running.stop()
    assert running.asked == []


def test_the_end_tries_for_as_long_as_it_may_and_keeps_the_rest(folder):
    running = HookServer(lambda number: Reaction(stall=60))
    target = {"webhook": running.url(), "allow_private": True, "timeout": "60s"}
    with delivering(folder, target) as delivery:
        delivery.send(message(0))
        until(lambda: running.asked)
        began = time.monotonic()
        delivery.close(0.2)
        assert time.monotonic() - began < 5
        assert count(delivery, "waiting") == 1
        delivery.close(0.2)
    running.stop()


def test_what_is_sent_after_the_end_is_delivered_by_the_next_run(folder):
    with delivering(folder, jsonl(folder), starts=False) as delivery:
        delivery.close(0)
        threads = [
            threading.Thread(target=delivery.send, args=(message(each),)) for each in range(4)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        with (
            delivering(folder, jsonl(folder), close=20),
            pytest.raises(ConfigError, match="is in use by"),
        ):
            delivery.send(message(4))
    assert sorted(each["n"] for each in lines(folder)) == [0, 1, 2, 3]


def test_what_is_sent_after_the_end_and_cannot_be_written_is_an_error(folder, monkeypatch):
    def full(spool, messages, removed):
        raise sqlite3.OperationalError("database or disk is full")

    with delivering(folder, jsonl(folder), starts=False) as delivery:
        delivery.close(0)
        monkeypatch.setattr(Spool, "write", full)
        with pytest.raises(ConfigError, match=r"an event of alert 'parcel' is lost: .* written"):
            delivery.send(message(0))


def test_the_end_delivers_what_waits_if_it_can(folder):
    """Also what is in a long pause after a failed try."""
    running = HookServer(lambda number: Reaction(204 if number else 503))
    target = {"webhook": running.url(), "allow_private": True}
    with delivering(folder, target, back_off=BackOff(60, 60)) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "failed_tries"))
        delivery.close(10)
        assert count(delivery, "delivered") == 1
    running.stop()


def test_many_threads_may_send(folder):
    with delivering(folder, jsonl(folder)) as delivery:

        def send(first):
            for number in range(first, first + 20):
                delivery.send(message(number))

        threads = [threading.Thread(target=send, args=(first,)) for first in (0, 100, 200)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        until(lambda: count(delivery, "delivered") == 60)
    numbers = [each["n"] for each in lines(folder)]
    for first in (0, 100, 200):
        own = [n for n in numbers if first <= n < first + 100]
        assert own == list(range(first, first + 20))


def test_a_second_process_is_refused_in_one_line_and_a_killed_one_holds_nothing(folder):
    child = python("-c", HOLDER, str(folder), environment={"PYTHONPATH": str(TESTS)})
    try:
        assert child.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=rf"is in use by process {child.pid}: end it, or name"),
            delivering(folder, jsonl(folder)),
        ):
            pass
    finally:
        kill(child)
        child.stderr.close()
    with delivering(folder, jsonl(folder)):
        pass


@pytest.mark.parametrize("place", ["no/spool", ".", "folder"])
def test_a_spool_that_cannot_be_opened_is_one_line(folder, place):
    (folder / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"the spool .* cannot be opened .*: name a file"):
        Delivery({}, folder / place, spool_bytes=1 << 20, warn=Said())


@pytest.mark.parametrize("size", [0, 1000, 2.5, "1MB", True, 1 << 50])
def test_a_budget_of_another_kind_is_refused(folder, size):
    with pytest.raises(ConfigError, match="spool_bytes"):
        Delivery({}, folder / "spool", spool_bytes=size, warn=Said())


def test_a_target_that_is_named_twice_is_refused(folder):
    with (
        pytest.raises(ConfigError, match="named twice"),
        delivering(folder, jsonl(folder), jsonl(folder)),
    ):
        pass


def test_two_targets_of_one_host_have_two_names(folder):
    hooks = [{"webhook": f"https://example.org/{each}"} for each in "ab"]
    with delivering(folder, *hooks, starts=False) as delivery:
        assert list(delivery.state()["targets"]) == [
            "parcel: webhook https://example.org",
            "parcel: webhook https://example.org (2)",
        ]


def test_an_alert_without_an_entry_and_a_body_that_is_no_json_are_refused(folder):
    with delivering(folder, jsonl(folder)) as delivery:
        with pytest.raises(ConfigError, match="no targets are known of alert 'car'"):
            delivery.send(Message("k", "car", "front", "fired", {}))
        with pytest.raises(ValueError, match="JSON"):
            delivery.send(message(0, x=float("nan")))
        with pytest.raises(TypeError):
            delivery.send(message(0, x=object()))
        assert count(delivery, "waiting") == 0


@pytest.mark.parametrize(
    ("module", "target"),
    [("httpx", {"webhook": "https://a.org"}), ("paho.mqtt", {"mqtt": "mqtt://a/b"})],
)
def test_a_package_that_is_missing_is_named_with_its_extra(folder, monkeypatch, module, target):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught, delivering(folder, target):
        pass
    line = str(caught.value)
    assert "needs the extra `alerts` of vicort" in line
    assert f"is not installed: run `{install_command('alerts')}`" in line
    assert line.isprintable()


def test_without_such_targets_the_packages_are_not_imported(folder):
    code = (
        "import sys; from pathlib import Path; from support.alert_messages import delivering\n"
        "jsonl = {'jsonl': sys.argv[1] + '/a'}\n"
        "with delivering(Path(sys.argv[1]), jsonl, {'command': 'true'}): pass\n"
        "print([n for n in ('httpx', 'paho', 'certifi') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=TESTS, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


SOME = ("{'webhook': 'https://hook.invalid/a'}", "{'mqtt': 'mqtt://broker.invalid/a'}")


@pytest.mark.parametrize("targets", [SOME, *slow([])], ids=["some", "none"])
def test_nothing_is_asked_of_the_network_but_the_targets(tmp_path, targets):
    (tmp_path / "spools").mkdir()
    run = watched(
        *(tmp_path, sys.executable, "-c", SILENT, tmp_path / "spools", *targets),
        PYTHONPATH=str(TESTS),
    )
    assert run.done.returncode == 0, run.done.stderr
    assert set(run.requests) == (
        {"lookup hook.invalid", "lookup broker.invalid"} if targets else set()
    )
    assert run.left == ["here/a", "spools/spool", "spools/spool.lock"]


SECRETS = {
    "SECRET": "whsec_" + "c2VjcmV0LW9mLXRoZS1ob29r",
    "TOKEN": "Bearer token-of-the-hook",
    "WORD": "pass+word/of the broker",
    "CHAT": "token-of-the-chat",
}


def test_no_secret_is_in_a_log_a_warning_a_state_or_the_spool(folder, caplog, capfd):
    """With every logger of every library at its most verbose, and every kind of failure."""
    caplog.set_level(logging.DEBUG)
    codes = [503, 401, 204, 301]
    running = HookServer(
        lambda number: Reaction(
            codes[number % 4], (("Location", f"http://x/{SECRETS['CHAT']}?a=token-of-the-hook"),)
        )
    )
    path = "/services/path-of-the-hook"
    hook = {
        "webhook": running.url(f"{path}?key=query-of-the-hook"),
        "secret_env": "SECRET",
        "headers_env": {"Authorization": "TOKEN"},
        "allow_private": True,
    }
    closed = HookServer()
    closed.stop()
    away = {**hook, "webhook": closed.url(path)}
    broker = {"mqtt": f"mqtt://user@127.0.0.1:{closed.port}/a", "password_env": "WORD"}
    text = "echo $CHAT $TOKEN; test $VICORT_KEY != key-0 || exit 3"
    program = folder / "notify.sh"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    command = {"command": str(program), "environment": ["CHAT"]}
    warn = Said()
    targets = (hook, away, broker, command)
    with delivering(folder, *targets, warn=warn, environment=SECRETS, back_off=SOON) as delivery:
        for number in range(4):
            delivery.send(message(number, b"jpeg"))
        until(lambda: all(count(delivery, "failed_tries", each) > 2 for each in range(4)))
        until(lambda: count(delivery, "waiting", 0) == 0)
        shown = json.dumps(delivery.state()) + "\n".join(warn)
    running.stop()
    shown += "\n".join(logging.Formatter().format(each) for each in caplog.records)
    shown += "".join(capfd.readouterr())
    for each in folder.iterdir():
        if each.name.startswith("spool"):
            shown += each.read_bytes().decode("latin-1")
    hidden = list(SECRETS.values())
    hidden += ["c2VjcmV0LW9mLXRoZS1ob29r", "secret-of-the-hook", "path-of-the-hook"]
    hidden += ["query-of-the-hook", "token-of-the-hook"]
    assert "exit code 3" in shown
    assert [word for word in hidden if word in shown] == []
