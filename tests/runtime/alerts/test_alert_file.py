"""The alert file: what it says, and one line for each mistake."""

from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.alerts.alert_file import load_alerts, parse_alerts, parse_duration
from vicort.runtime.alerts.rule import Enough
from vicort.runtime.errors import ConfigError

EXAMPLE = """
streams:
  front: {url: "rtsp://user:geheim@camera/1", system: distinct}
  yard:
    url: rtsp://camera/2
    fps: 4
    zones: {gate: [[0, 0], [0.5, 0], [0.5, 1]]}
    privacy_masks: [[[0.5, 0.5], [1, 0.5], [1, 1]]]
alerts:
  - name: parcel
    streams: [front]
    question: is there a parcel at the door?
    ask_every: 1s
    window: 1.5s
    fire: {choice: yes, above: 0.8, for: 2 of 3}
    clear: {below: 0.3, for: 4 of 4}
    cooldown: 2m
    then: describe what you see in one sentence
    clip: {before: 2s, after: 500ms}
    notify: [{webhook: https://example.org/hook, secret_env: HOOK}, {jsonl: alerts.jsonl}]
  - name: gate
    streams: [yard]
    zone: gate
    question: is the gate open?
    choices: [no, yes, 3]
  - name: anybody
    question: is somebody there?
"""


def test_a_file_is_read_as_it_is_written():
    file = parse_alerts(EXAMPLE, "a.yaml")
    parcel, gate, anybody = file.alerts
    assert (parcel.ask_every, parcel.window, parcel.cooldown) == (1, Fraction(3, 2), 120)
    assert (parcel.clip.before, parcel.clip.after) == (2, Fraction(1, 2))
    rule = parcel.rule
    assert (rule.above, rule.fire, rule.below, rule.clear) == (0.8, Enough(2, 3), 0.3, Enough(4, 4))
    assert [each.kind for each in parcel.notify] == ["webhook", "jsonl"]
    assert (gate.choices, gate.zone, gate.fire.choice) == (("no", "yes", "3"), "gate", "yes")
    assert (anybody.streams, anybody.choices, anybody.window) == (None, ("yes", "no"), None)
    assert file.of_stream("front") == (parcel, anybody)
    assert file.of_stream("yard") == (gate, anybody)
    assert file.streams["yard"].rate == 4
    assert "geheim" not in repr(file)


def test_a_url_takes_variables_of_the_environment():
    text = EXAMPLE.replace("geheim", "${CAM_PASSWORD}")
    front = parse_alerts(text, "a.yaml").streams["front"]
    assert front.source("front", {"CAM_PASSWORD": "x"}) == "rtsp://user:x@camera/1"
    with pytest.raises(ConfigError, match="needs the variable CAM_PASSWORD"):
        front.source("front", {})


def test_a_stream_without_a_url_needs_a_source():
    file = parse_alerts("{streams: {a: {}}, alerts: [{name: b, question: c}]}", "a.yaml")
    with pytest.raises(ConfigError, match="stream a has no url: add one, or name its source"):
        file.streams["a"].source("a")


@given(st.integers(0, 40_000), st.sampled_from([("ms", 1000), ("s", 1), ("m", Fraction(1, 60))]))
def test_durations_are_exact(number, unit):
    name, in_a_second = unit
    assert parse_duration(f"{number}{name}") * in_a_second == number


def wrong(change):
    """The line that says what is wrong with the example after a change of its content."""
    content = yaml.safe_load(EXAMPLE)
    content["alerts"][0]["fire"]["choice"] = "yes"  # which this loader reads as true
    content["alerts"][1]["choices"] = ["yes", "no"]
    change(content)
    with pytest.raises(ConfigError) as refused:
        parse_alerts(yaml.safe_dump(content), "a.yaml")
    return str(refused.value).removeprefix("a.yaml: ")


def put(*path, value):
    """Change one value of the content."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


PARCEL = ("alerts", 0)
TRIANGLE = [[0, 0], [1, 0], [1, 1]]
MISTAKES = {
    "a top key": (put("alarms", value=[]), "unknown key 'alarms': the file takes streams, alerts"),
    "a key of an alert": (
        put(*PARCEL, "quesion", value="?"),
        "alert parcel: unknown key 'quesion': alert parcel takes name, streams, question",
    ),
    "a key of fire": (
        put(*PARCEL, "fire", value={"over": 0.8}),
        "alert parcel: fire: unknown key 'over': fire takes choice, above, for",
    ),
    "a missing question": (
        lambda content: content["alerts"][2].pop("question"),
        "alert anybody: key 'question' is missing: alert anybody takes",
    ),
    "no alerts": (lambda content: content.pop("alerts"), "key 'alerts' is missing: the file takes"),
    "empty alerts": (put("alerts", value=[]), "alerts is []: "),
    "thresholds out of order": (
        put(*PARCEL, "clear", "below", value=0.9),
        "alert parcel: clear below 0.9 is more than fire above 0.8",
    ),
    "a threshold that is none": (
        put(*PARCEL, "fire", "above", value=1.5),
        "alert parcel: fire above 1.5: give a probability",
    ),
    "a threshold in words": (
        put(*PARCEL, "fire", "above", value="high"),
        "alert parcel: fire: above is 'high': it should be a valid number",
    ),
    "how many": (
        put(*PARCEL, "fire", "for", value="2/3"),
        "alert parcel: fire: for: '2/3' does not say how many",
    ),
    "more than there are": (
        put(*PARCEL, "fire", "for", value="4 of 3"),
        "alert parcel: fire for 4 of 3: give N of M",
    ),
    "a duration": (
        put(*PARCEL, "ask_every", value="soon"),
        "alert parcel: ask_every: 'soon' is no duration: write a number with ms, s, m or h",
    ),
    "a short period": (put(*PARCEL, "ask_every", value=0), "alert parcel: ask_every is 0: "),
    "a negative duration": (
        put(*PARCEL, "cooldown", value=-1),
        "alert parcel: cooldown: -1 is no duration",
    ),
    "a long clip": (
        put(*PARCEL, "clip", "before", value="2h"),
        "alert parcel: clip: before is '2h': ",
    ),
    "an unknown stream": (
        put(*PARCEL, "streams", value=["back"]),
        "alert parcel: stream back is unknown: name one of front, yard",
    ),
    "an unknown zone": (
        put(*PARCEL, "zone", value="door"),
        "alert parcel: stream front has no zone door: add it to its zones",
    ),
    "another zone": (
        put("alerts", 1, "zone", value="door"),
        "alert gate: stream yard has no zone door: name one of gate",
    ),
    "a name twice": (
        put("alerts", 1, "name", value="parcel"),
        "two alerts have the name parcel: rename one",
    ),
    "a name with signs": (
        put(*PARCEL, "name", value="../parcel"),
        "alert ../parcel: name '../parcel': give 1 to 64 of the letters",
    ),
    "one choice": (
        put(*PARCEL, "choices", value=["yes"]),
        "alert parcel: choices: choices has 1 of them: give two or more",
    ),
    "a choice twice": (
        put(*PARCEL, "choices", value=["yes", "yes"]),
        "alert parcel: choices: choice 'yes' is there twice",
    ),
    "fire by no choice": (
        put(*PARCEL, "choices", value=["open", "closed"]),
        "alert parcel: fire.choice 'yes' is none of the choices: give one of open, closed",
    ),
    "a blank question": (
        put(*PARCEL, "question", value="  "),
        "alert parcel: question: '  ' contains no question",
    ),
    "a point outside": (
        put("streams", "yard", "privacy_masks", value=[[[0, 0], [1, 0], [1, 1.2]]]),
        "streams: yard: privacy_mask number 1: the point [1, 1.2] is outside the frame",
    ),
    "two points": (
        put("streams", "yard", "zones", value={"gate": TRIANGLE[:2]}),
        "streams: yard: zones: gate: [[0, 0], [1, 0]] is no polygon: give 3 to 64 points",
    ),
    "a system": (
        put("streams", "yard", "system", value="clever"),
        "streams: yard: system: unknown system 'clever': choose one of",
    ),
    "a rate": (put("streams", "yard", "fps", value=-1), "streams: yard: fps: -1.0 frames per"),
    "a target of no kind": (
        put(*PARCEL, "notify", value=[{"mail": "me"}]),
        "alert parcel: notify number 1",
    ),
    "a private address": (
        put(*PARCEL, "notify", value=[{"webhook": "http://10.0.0.1/geheim"}]),
        "alert parcel: notify number 1: webhook: 10.0.0.1 is a private address",
    ),
    "a file as a webhook": (
        put(*PARCEL, "notify", value=[{"webhook": "file:///etc/passwd"}]),
        "alert parcel: notify number 1: webhook",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    change, expected = MISTAKES[name]
    line = wrong(change)
    assert line.startswith(expected)
    assert "\n" not in line
    assert "geheim" not in line


def test_a_stream_without_an_alert_is_a_mistake():
    text = "{streams: {a: {}, b: {}}, alerts: [{name: c, streams: [a], question: d}]}"
    with pytest.raises(ConfigError, match="stream b has no alert: name it in one, or leave it out"):
        parse_alerts(text, "a.yaml")


def test_a_key_that_stands_twice_is_a_mistake():
    text = "streams:\n  a: {}\n  a: {}\nalerts: []"
    with pytest.raises(ConfigError, match=r"line 3: key 'a' is there twice"):
        parse_alerts(text, "a.yaml")


@pytest.mark.parametrize(("text", "line"), [("[]", "holds list"), ("{", "is not YAML")])
def test_what_is_no_mapping(text, line):
    with pytest.raises(ConfigError, match=rf"^a\.yaml {line}"):
        parse_alerts(text, "a.yaml")


def test_a_mistake_of_yaml_shows_no_password():
    for text in ("streams: {a: {url: rtsp://u:geheim@host/1}", "a: [rtsp://u:geheim@host: x: y"):
        with pytest.raises(ConfigError, match="is not YAML") as refused:
            parse_alerts(text, "a.yaml")
        assert "geheim" not in str(refused.value)


def test_a_question_mark_in_braces_needs_quotes():
    text = "alerts: [{name: a, question: is it open?}]"
    with pytest.raises(ConfigError, match="put text with a question mark in quotes"):
        parse_alerts(text, "a.yaml")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_alerts(tmp_path / "none.yaml")


SECRET = "GEHEIMnis"
HOOK = f"https://hooks.slack.com/services/T0/B0/{SECRET}"
SECRETS = {
    f"- {{webhok: {HOOK}}}": "a mapping with the keys 'webhok': it should have exactly one of",
    f"- {{webhook: {HOOK}, jsonl: a}}": "a mapping with the keys 'webhook', 'jsonl': it should",
    f"- {HOOK}": r"a text of \d+ characters: it should have exactly one of the keys",
    f"- {{webhook: [{HOOK}]}}": "webhook is a list of 1",
    f"- {{{HOOK}}}": "a mapping with the keys of",
    f"- {{webhook: {HOOK}, headers_env: {{Authorization: 'Bearer {SECRET}'}}}}": (
        "headers_env: 'Authorization' is a text of .* give the name of a variable"
    ),
    f"- {{webhook: {HOOK}, secret_env: 'whsec_{SECRET}='}}": "secret_env is a text of 16",
    f"- {{command: a, environment: {{TOKEN: {SECRET}}}}}": "environment is a mapping",
    f"- {{mqtt: 'mqtt://b/+{SECRET}'}}": "mqtt: it has no topic that is allowed",
    f"- {{mqtt: 'mqtt://b/a', password: {SECRET}}}": "mqtt: unknown key 'password': mqtt takes",
    f"- {{webhook: {HOOK}, headers_env: {{'A: {SECRET}': B}}}}": "a key is no header",
    f"- {{webhook: {HOOK}, timeout: {SECRET}}}": "timeout: it is no length of time",
    f"- {{webhook: '{SECRET}:'}}": "webhook: its scheme is not allowed",
    f"- {{webhook: {HOOK}": r"not YAML: line 7, column 1: .* expected ',' or '}'",
    HOOK: "notify is a text of",
    f"- {{webhook: !{SECRET} a}}": "not YAML: line 6, column 19: .* the tag '…'",
    f"- {{webhook: *{SECRET} }}": "not YAML: aliases",
}


@pytest.mark.parametrize("entry", SECRETS)
def test_a_mistake_below_notify_shows_no_value(entry):
    head = "streams: {a: {}}\nalerts:\n  - name: parcel\n    question: b\n    notify:\n      "
    with pytest.raises(ConfigError, match=SECRETS[entry]) as refused:
        parse_alerts(f"{head}{entry}\n", "a.yaml")
    line = str(refused.value)
    assert SECRET not in line
    assert line.count("webhook: webhook") == 0
    assert "name 1 to 64" not in line
    assert refused.value.__suppress_context__, "a traceback shows no other error"


def test_an_alert_in_the_wrong_place_shows_no_value():
    text = f"{{streams: {{a: {{}}}}, alerts: {{name: p, notify: [{{webhook: '{HOOK}'}}]}}}}"
    with pytest.raises(
        ConfigError, match="alerts is a mapping with the keys 'name', 'notify'"
    ) as no:
        parse_alerts(text, "a.yaml")
    assert SECRET not in str(no.value)


def test_keys_are_named_only_after_a_key():
    line = wrong(put(*PARCEL, "choices", value=["a", ["b"]]))
    assert "choice number 2 is a list of 1" in line
    assert "takes" not in line


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["question", "choices", "ask_every", "fire", "clear", "clip", "notify"])


@given(KEYS, JSON)
def test_any_value_is_taken_or_refused_in_one_line(key, value):
    content = {
        "streams": {"a": {}},
        "alerts": [{"name": "b", "question": "c", key: value}],
    }
    line = ""
    try:
        parse_alerts(yaml.safe_dump(content), "a.yaml")
    except ConfigError as error:
        line = str(error)
    assert line.startswith("a.yaml") or not line
    assert "\n" not in line
