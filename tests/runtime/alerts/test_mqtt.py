"""MQTT, against mosquitto on loopback."""

import json
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.alert_messages import TARGETS, Said, count, delivering, message
from support.processes import kill, python
from support.receivers import Broker, needs_mosquitto, subscriber, until

from vicort.runtime.alerts.delivery import Delivery
from vicort.runtime.alerts.home_assistant import announcements
from vicort.runtime.alerts.message import Message
from vicort.runtime.errors import ConfigError

# what each integration of Home Assistant requires, and what its discovery needs for a device:
# https://www.home-assistant.io/integrations/binary_sensor.mqtt/ and image.mqtt
REQUIRED = {"binary_sensor": {"state_topic"}, "image": {"image_topic"}}
FOR_A_DEVICE = {"unique_id", "device"}
# the other keys of these pages that are used here
KNOWN = {
    *("name", "payload_on", "payload_off", "json_attributes_topic", "qos", "content_type"),
    *("availability_topic", "payload_available", "payload_not_available", "origin"),
}
TESTS = Path(__file__).parents[2]
SENDER = """
import sys, time
from pathlib import Path
from support.alert_messages import delivering, message
with delivering(Path(sys.argv[1]), {"mqtt": sys.argv[2]}) as delivery:
    delivery.send(message(0))
    time.sleep(60)
"""


@contextmanager
def broker(folder, *lines):
    running = Broker(folder, *lines)
    try:
        yield running
    finally:
        running.stop()


def target(running, topic="vicort/front/parcel", user="", **keys):
    return {"mqtt": f"mqtt://{user}127.0.0.1:{running.port}/{topic}", "timeout": "5s", **keys}


def shown(got):
    return [(each.topic, bytes(each.payload)) for each in got]


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_an_event_is_published_with_its_state_and_its_picture(folder, protocol):
    with broker(folder) as running:
        with subscriber(running.port) as got:
            with delivering(folder, target(running, protocol=protocol), close=5) as delivery:
                delivery.send(message(0, b"jpeg"))
                delivery.send(message(1, None, "cleared"))
            until(lambda: len(got) >= 9)
            documents = [json.dumps(message(0).document(), separators=(",", ":")).encode()]
            cleared = message(1, None, "cleared").document()
            documents.append(json.dumps(cleared, separators=(",", ":")).encode())
            topic = "vicort/front/parcel"
            assert shown(got) == [
                (f"{topic}/availability", b"online"),
                (f"{topic}/picture", b"jpeg"),
                (f"{topic}/attributes", documents[0]),
                (f"{topic}/state", b"ON"),
                (topic, documents[0]),
                (f"{topic}/attributes", documents[1]),
                (f"{topic}/state", b"OFF"),
                (topic, documents[1]),
                (f"{topic}/availability", b"offline"),
            ]
            assert {each.qos for each in got} == {1}
        with subscriber(running.port) as late:
            until(lambda: len(late) >= 4)
            kept = {each.topic.removeprefix(topic): bytes(each.payload) for each in late}
            assert kept == {
                "/availability": b"offline",
                "/picture": b"jpeg",
                "/attributes": documents[1],
                "/state": b"OFF",
            }


@needs_mosquitto
def test_home_assistant_finds_what_its_pages_ask_for(folder):
    topic = "vicort/{stream}/{alert}"
    with broker(folder) as running, subscriber(running.port) as got:
        named = target(running, topic, discovery="homeassistant")
        with delivering(folder, named) as delivery:
            delivery.send(message(0, b"jpeg"))
            until(lambda: count(delivery, "delivered"))
            until(lambda: any(each.topic == "vicort/front/parcel" for each in got))
    topics = [each.topic for each in got]
    found = {}
    for each in got:
        if each.topic.startswith("homeassistant/"):
            _, component, node, _, last = each.topic.split("/")
            assert (node, last) == ("vicort", "config")
            found[component] = json.loads(each.payload)
            # before the state that it describes
            assert topics.index(each.topic) < topics.index("vicort/front/parcel/state")
    assert found.keys() == REQUIRED.keys()
    for component, payload in found.items():
        assert REQUIRED[component] | FOR_A_DEVICE <= payload.keys()
        assert payload.keys() <= REQUIRED[component] | FOR_A_DEVICE | KNOWN
        assert payload["device"]["identifiers"] == ["vicort_front"]
        assert payload["origin"]["name"]
        assert payload["availability_topic"] == "vicort/availability"
        for key, value in payload.items():
            if key.endswith("_topic"):
                assert value in topics
    sensor = found["binary_sensor"]
    states = [bytes(each.payload).decode() for each in got if each.topic == sensor["state_topic"]]
    assert states == [sensor["payload_on"]]
    (attributes,) = [each for each in got if each.topic == sensor["json_attributes_topic"]]
    assert json.loads(attributes.payload) == message(0).document()


@needs_mosquitto
def test_alerts_on_one_broker_share_a_connection_and_are_found_at_the_start(folder):
    with broker(folder) as running, subscriber(running.port) as got:
        (named,) = TARGETS.validate_python(
            [target(running, "vicort/{alert}", discovery="homeassistant")]
        )
        delivery = Delivery(
            {"parcel": [named], "car": [named]}, folder / "spool", spool_bytes=1 << 20, warn=Said()
        )
        delivery.start()
        until(lambda: len(got) >= 5)
        delivery.send(Message("k", "car", "front", "fired", {}))
        delivery.close(20)
        until(lambda: got[-1].payload == b"offline")
    assert [each.topic for each in got if each.payload == b"online"] == ["vicort/availability"]
    found = [json.loads(each.payload) for each in got if each.topic.endswith("/config")]
    assert {each["device"]["name"] for each in found} == {"vicort"}
    states = {each["state_topic"] for each in found if "state_topic" in each}
    assert states == {"vicort/parcel/state", "vicort/car/state"}
    assert [each.topic for each in got if each.payload == b"ON"] == ["vicort/car/state"]


@needs_mosquitto
@pytest.mark.parametrize("topic", ["vicort/front/parcel", "vicort/{stream}/{alert}"])
def test_a_broker_that_has_forgotten_is_sent_them_again(folder, topic):
    """mosquitto keeps retained messages in memory alone unless its configuration says otherwise."""
    running = Broker(folder)
    with delivering(folder, target(running, topic, discovery="homeassistant")) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"))
        running.stop()
        running.start()
        delivery.send(message(1))
        until(lambda: count(delivery, "delivered") == 2)
        with subscriber(running.port) as got:
            until(lambda: [each for each in got if each.topic.endswith("/config")])
            until(lambda: [each for each in got if each.topic.endswith("/availability")])
    running.stop()


def test_announcements_have_names_that_discovery_allows_and_never_the_same():
    found = [
        *announcements("ha", "a/b c", "a", "pär cel", "front/1", picture=True).items(),
        *announcements("ha", "a/b_c", "a", "pär_cel", "front/1", picture=True).items(),
        *announcements("ha", "a", "a", "parcel", None, picture=False).items(),
    ]
    assert len(dict(found)) == 5
    assert len({each["unique_id"] for _, each in found}) == 5
    for topic, _ in found:
        assert topic.startswith("ha/")
        assert all(letter.isascii() and (letter.isalnum() or letter in "/_-") for letter in topic)


@needs_mosquitto
def test_a_broker_that_is_away_and_restarts_gets_everything_in_order(folder):
    running = Broker(folder)
    running.stop()
    warn = Said()
    with delivering(folder, target(running), warn=warn) as delivery:
        until(lambda: warn)
        delivery.send(message(0))
        running.start()
        until(lambda: count(delivery, "delivered") == 1)
        running.stop()
        for number in range(1, 6):
            delivery.send(message(number))
        running.start()
        with subscriber(running.port) as got:
            until(lambda: count(delivery, "delivered") == 6)
            until(lambda: [each for each in got if b"key-5" in each.payload])
        assert len(warn) <= 3
        keys = [json.loads(m.payload)["key"] for m in got if m.topic == "vicort/front/parcel"]
        assert keys == sorted(keys)
    running.stop()


@needs_mosquitto
def test_a_broker_that_stalls_takes_nothing_and_holds_up_no_close(folder):
    running = Broker(folder)
    with delivering(folder, target(running, timeout="300ms")) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"))
        running._process.send_signal(signal.SIGSTOP)
        delivery.send(message(1))
        until(lambda: count(delivery, "failed_tries"))
        assert count(delivery, "waiting") == 1
        running._process.send_signal(signal.SIGCONT)
        until(lambda: count(delivery, "delivered") == 2)
    running.stop()


@needs_mosquitto
def test_the_broker_says_that_a_killed_process_is_gone(folder):
    with broker(folder) as running, subscriber(running.port) as got:
        child = python(
            *("-c", SENDER, str(folder), f"mqtt://127.0.0.1:{running.port}/a/b"),
            environment={"PYTHONPATH": str(TESTS)},
        )
        try:
            until(lambda: [m for m in got if m.topic == "a/b"])
        finally:
            kill(child)
            child.stderr.close()
        until(lambda: ("a/b/availability", b"offline") in shown(got))


@pytest.fixture
def passwords(folder):
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    file = folder / "passwords"
    for user, option in (("vicort", ["-c"]), ("reader", [])):
        command = ["mosquitto_passwd", "-b", *option, str(file), user, "geheim"]
        subprocess.run(command, check=True, capture_output=True)
    rights = folder / "rights"
    rights.write_text("user reader\ntopic read #\nuser vicort\ntopic write vicort/+/parcel/#\n")
    file.chmod(0o644)
    rights.chmod(0o644)
    folder.chmod(0o755)
    return ("allow_anonymous false", f"password_file {file}", f"acl_file {rights}")


@needs_mosquitto
def test_a_password_comes_from_the_environment_and_is_shown_nowhere(folder, passwords):
    with broker(folder, *passwords) as running:
        named = target(running, user="vicort@", password_env="WORD")
        with (
            subscriber(running.port, ("reader", "geheim")) as got,
            delivering(folder, named, environment={"WORD": "geheim"}) as delivery,
        ):
            delivery.send(message(0))
            until(lambda: count(delivery, "delivered"))
            until(lambda: any(each.topic == "vicort/front/parcel" for each in got))
            assert "geheim" not in json.dumps(delivery.state())


@needs_mosquitto
def test_a_wrong_password_is_said_and_loses_nothing(folder, passwords):
    with broker(folder, *passwords) as running:
        named = target(running, user="vicort@", password_env="WORD")
        warn = Said()
        with delivering(folder, named, warn=warn, environment={"WORD": "falsch"}) as delivery:
            delivery.send(message(0))
            until(lambda: count(delivery, "failed_tries") > 1)
            assert "it refuses the connection: " in warn[0]
            assert "falsch" not in str(warn) + json.dumps(delivery.state())
            assert (count(delivery, "waiting"), count(delivery, "refused")) == (1, 0)


@needs_mosquitto
def test_a_topic_that_may_not_be_written_is_said_and_loses_nothing(folder, passwords):
    """As a broker with MQTT 5 says. (mosquitto 2.0 acknowledges it otherwise.)"""
    with broker(folder, *passwords) as running:
        named = target(running, "vicort/{stream}", user="vicort@", password_env="WORD")
        with delivering(
            folder, named, warn=(warn := Said()), environment={"WORD": "geheim"}
        ) as delivery:
            delivery.send(message(0))
            until(lambda: count(delivery, "failed_tries") > 8)
            assert (count(delivery, "waiting"), count(delivery, "refused")) == (1, 0)
            reason = count(delivery, "last_error")
        assert reason == "it answered Not authorized to vicort/front/attributes"
        assert "not reached (it answered Not authorized to vicort/" in warn[0]


@pytest.mark.parametrize(
    ("topics", "missing"),
    [
        (("a", None), "{stream}"),
        (("a/{alert}", None), "{stream}"),
        ((None, "a"), None),
        (("a/{stream}", "a/{stream}"), "{alert}"),
        (("b/{stream}", "b/front"), "{alert}"),
        (("a/{stream}/{alert}", "a/{stream}/{alert}"), None),
        (("a/{stream}", "b"), None),
    ],
)
def test_a_topic_is_that_of_one_alert_of_one_stream(folder, topics, missing):
    named = {
        alert: TARGETS.validate_python([{"mqtt": f"mqtt://127.0.0.1/{topic}"}] if topic else [])
        for alert, topic in zip(("parcel", "car"), topics, strict=True)
    }
    streams = {"parcel": ("front", "yard"), "car": ("front",)}
    options = {"spool_bytes": 1 << 20, "warn": Said()}
    if missing is None:
        Delivery(named, folder / "spool", streams=streams, **options).close(0)
        return
    with pytest.raises(ConfigError, match="overwrite each other's state") as caught:
        Delivery(named, folder / "spool", streams=streams, **options)
    assert f": add {missing} to the topic, as " in str(caught.value)


def test_where_streams_are_not_known_two_alerts_on_one_topic_are_refused_all_the_same(folder):
    named = dict.fromkeys(
        ("parcel", "car"), TARGETS.validate_python([{"mqtt": "mqtt://127.0.0.1/a"}])
    )
    with pytest.raises(ConfigError, match=r"add .alert. to the topic"):
        Delivery(named, folder / "spool", spool_bytes=1 << 20, warn=Said())


def test_a_password_that_is_missing_is_refused_at_the_start(folder):
    named = {"mqtt": "mqtt://user@127.0.0.1/t", "password_env": "WORD"}
    with (
        pytest.raises(ConfigError, match=r"password_env names .* WORD, which is not set"),
        delivering(folder, named, environment={}),
    ):
        pass
