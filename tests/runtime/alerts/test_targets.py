"""What an alert file may name as a target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.alert_messages import TARGETS

from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.shared_target import shared_targets
from vicort.runtime.alerts.targets import MAX_TIMEOUT
from vicort.runtime.errors import ConfigError

HOOK = "https://hooks.example.org/services/T0/geheim"


def parsed(**keys):
    (target,) = TARGETS.validate_python([keys])
    return target


def refusal(**keys):
    with pytest.raises(ValidationError) as caught:
        parsed(**keys)
    (error,) = caught.value.errors()
    return error["msg"]


def test_one_key_names_the_kind():
    named = TARGETS.validate_python(
        [{"webhook": HOOK}, {"mqtt": "mqtt://b/t"}, {"command": "./a 'b c'"}, {"jsonl": "a.jsonl"}]
    )
    assert [each.kind for each in named] == ["webhook", "mqtt", "command", "jsonl"]
    assert named[2].command == ("./a", "b c")
    assert TARGETS.validate_python(named) == named


@pytest.mark.parametrize("keys", [{}, {"webhook": HOOK, "jsonl": "a"}, {"slack": HOOK}])
def test_none_or_two_of_them_are_refused(keys):
    assert "exactly one of the keys webhook, mqtt, command, jsonl" in refusal(**keys)


def test_names_for_people_hide_what_may_be_secret():
    assert parsed(webhook=HOOK).place() == "webhook https://hooks.example.org"
    mqtt = parsed(mqtt="mqtts://user@b:1/vicort/{stream}/%C3%A4")
    assert mqtt.place() == "mqtt mqtts://b:1/vicort/{stream}/ä"
    assert parsed(command=["curl", "-H", "X-Key: geheim"]).place() == "command curl"


@pytest.mark.parametrize(
    ("variable", "said"), [("HOOK_KEY", "HOOK_KEY"), ("whsec_geheim", "12"), ("A" * 33, "33")]
)
def test_a_secret_in_the_place_of_a_variable_is_not_shown(variable, said):
    with pytest.raises(ConfigError, match=rf"secret_env names .*{said}.* not set") as refused:
        Credentials({}).read(variable, "secret_env", "parcel")
    assert (variable in str(refused.value)) == (variable == said)


def test_an_identity_is_that_of_the_place_and_no_other():
    assert parsed(webhook=HOOK).identity() == parsed(webhook=HOOK, timeout="1s").identity()
    others = [parsed(webhook=HOOK + "x"), parsed(jsonl=HOOK), parsed(command=[HOOK])]
    assert len({each.identity() for each in [parsed(webhook=HOOK), *others]}) == 4
    assert len({parsed(webhook=HOOK).identity(alert) for alert in (None, "a", "b")}) == 3


def test_alerts_share_a_target_unless_its_options_differ():
    hook, other = parsed(webhook=HOOK), parsed(webhook=HOOK, picture="none")
    named = {"a": [hook], "b": [other, parsed(jsonl="x")], "c": [hook], "d": [other]}
    found = shared_targets(named)
    assert [(each.target, each.alerts) for each in found] == [
        (hook, ["a", "c"]),
        (other, ["b", "d"]),
        (parsed(jsonl="x"), ["b"]),
    ]
    assert len({each.identity for each in found}) == 3
    assert [each.label for each in found] == [
        "a and 1 more: webhook https://hooks.example.org",
        "b and 1 more: webhook https://hooks.example.org",
        "b: jsonl x",
    ]
    # an option that is mended in another run finds what waits
    (mended,) = shared_targets({"a": [other]})
    assert mended.identity == found[0].identity


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("file:///etc/passwd", "scheme is not allowed"),
        ("ftp://example.org/geheim", "scheme is not allowed"),
        ("javascript:alert(1)", "is not allowed"),
        ("example.org/geheim", "no URL"),
        ("https:///geheim", "no URL"),
        ("https://a b/", "no URL"),
        ("https://example.org:99999/geheim", "no URL"),
        ("https://[::1", "no URL"),
        ("https://user:geheim@example.org/", "headers_env"),
        ("http://127.0.0.1/geheim", "allow_private: true"),
        ("http://[::ffff:10.0.0.1]/geheim", "allow_private: true"),
        ("http://169.254.169.254/latest/meta-data", "allow_private: true"),
    ],
)
def test_webhooks_that_are_refused(url, word):
    line = refusal(webhook=url)
    assert word in line
    assert "geheim" not in line


def test_a_private_address_can_be_allowed():
    assert parsed(webhook="http://127.0.0.1:8123/", allow_private=True).port == 8123


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("tcp://b/t", "use mqtt:// or mqtts://"),
        ("mqtt://b", "no topic that is allowed"),
        ("mqtt://b/", "no topic that is allowed"),
        ("mqtt://b/a/#", "no topic that is allowed"),
        ("mqtt://b/a/+/c", "no topic that is allowed"),
        ("mqtt://b/{stream}", "no topic that is allowed"),
        ("mqtt://b/a/{strem}", "no topic that is allowed"),
        ("mqtt://b/a?geheim=1", "no topic that is allowed"),
        ("mqtt://user:geheim@b/t", "password_env"),
    ],
)
def test_brokers_that_are_refused(url, word):
    line = refusal(mqtt=url)
    assert word in line
    assert "geheim" not in line


@pytest.mark.parametrize("command", ["", "  ", [], [""], "a 'b", ["a", "b\0"], 3, [3]])
def test_commands_that_are_refused(command):
    assert refusal(command=command)


@pytest.mark.parametrize("header", ["Host", "content-LENGTH", "webhook-signature", "a b", "", "ä"])
def test_headers_that_are_refused(header):
    assert "no header that may be set" in refusal(webhook=HOOK, headers_env={header: "NAME"})


@given(st.integers(1, 500), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_lengths_of_time(number, unit):
    name, seconds = unit
    if 0.1 <= number * seconds <= MAX_TIMEOUT:
        found = parsed(webhook=HOOK, timeout=f"{number}{name}").timeout
        assert found == pytest.approx(number * seconds)
    else:
        assert refusal(webhook=HOOK, timeout=f"{number}{name}")


@pytest.mark.parametrize("text", ["", "s", "10", "10 d", "-1s", "1e3s", "ten s", "nan"])
def test_other_lengths_are_refused(text):
    assert "no length of time" in refusal(webhook=HOOK, timeout=text)
