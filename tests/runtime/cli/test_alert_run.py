"""vicort-run --alerts with the embedded model: a dry run, several streams, delivery."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vicort.runtime.alerts.alert_event import AlertEvent, AlertsEvent, DeliveryEvent
from vicort.runtime.cli import run
from vicort.runtime.cli.writers import TextWriter

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
FILE = """
streams:
  left: {system: full-history, zones: {half: [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}}
  masked: {privacy_masks: [[[0, 0], [1, 0], [1, 1], [0, 1]]]}
alerts:
  - name: circle
    question: was there a circle?
    window: 2s
    then: what is there now?
    notify: [{jsonl: sent.jsonl}]
  - name: half
    streams: [left]
    zone: half
    question: was there a circle?
    window: 2s
"""


@pytest.fixture
def alerts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alerts.yaml").write_text(FILE)
    return "alerts.yaml"


def ran(capsys, engines, *arguments):
    options = ["--engine-dir", str(engines), "--format", "jsonl"]
    code = run.main([*arguments, *options])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_a_dry_run_says_when_each_alert_would_have_fired(alerts, tiny_engines, capsys):
    """The circle is there from 0.8 to 4.9 s; the mask hides it from the other stream."""
    code, events, err = ran(capsys, tiny_engines, "--alerts", alerts, str(CLIP))
    assert code == 0
    found = [each for each in events if each["event"] == "alert"]
    whole = [each for each in found if each["alert"] == "circle"]
    assert [(each["stream"], each["state"], each["at"]) for each in whole] == [
        ("left", "fired", 2.0),
        ("left", "cleared", 9.0),
    ]
    fired = whole[0]
    assert fired["probability"] > 0.8
    assert fired["series"] == [[1.0, pytest.approx(1, abs=0.2)], [2.0, pytest.approx(1, abs=0.2)]]
    assert fired["description"] == "yellow circle"
    assert np.asarray(Image.open(fired["picture"])).shape == (240, 320, 3)
    counts = {each["stream"]: each["alerts"] for each in events if each["event"] == "alerts"}
    assert counts["left"].keys() == {"circle", "half"}
    assert counts["masked"]["circle"] == {
        "asked": 22,
        "skipped": 0,
        "failed": 0,
        "fired": 0,
        "cleared": 0,
    }
    assert "--deliver sends them" not in err, "a line for people, not for programs"
    assert not Path("sent.jsonl").exists()


def test_deliver_sends_the_alerts_of_a_recorded_source(alerts, tiny_engines, capsys):
    code, events, _ = ran(
        capsys, tiny_engines, "--alerts", alerts, f"left={CLIP}", "--deliver", "--stats"
    )
    assert code == 0
    found = [each for each in events if each["event"] == "alert"]
    sent = [json.loads(line) for line in Path("sent.jsonl").read_text().splitlines()]
    of_circle = [each for each in found if each["alert"] == "circle"]
    assert [each["key"] for each in sent] == [each["key"] for each in of_circle]
    assert sent[0]["description"] == "yellow circle"
    (state,) = [each["state"] for each in events if each["event"] == "delivery"]
    (target,) = state["targets"].values()
    assert target["delivered"] == 2
    assert any(each["event"] == "answer" and each["choices"] for each in events), "--stats"


def test_a_stream_without_a_source_is_one_line(alerts, tiny_engines, capsys):
    code, events, err = ran(capsys, tiny_engines, "--alerts", alerts)
    assert (code, events) == (2, [])
    assert err == (
        "vicort-run: stream left has no url: add one, or name its source, such as "
        "`--alerts FILE left=clip.mp4`\n"
    )


EVENT = AlertEvent(
    "parcel",
    "front",
    "fired",
    12,
    "is there a parcel?",
    "yes",
    0.91,
    ((10, 0.3), (11, 0.9), (12, 0.91)),
    {"yes": 0.91, "no": 0.09},
    (),
    "0123",
    delay_ms=412.3,
    zone="door",
    picture="alerts/a.jpg",
    description="a box",
)


def test_alerts_as_text(capsys):
    writer = TextWriter(sys.stdout)
    writer.write(EVENT)
    counts = {"asked": 9, "skipped": 2, "failed": 0, "fired": 1, "cleared": 0}
    writer.write(AlertsEvent("front", {"parcel": counts}))
    writer.write(DeliveryEvent({"targets": {"parcel: jsonl a": {"delivered": 1, "waiting": 0}}}))
    assert capsys.readouterr().out.splitlines() == [
        "parcel fired on front, zone door at 12.000 s: yes 0.91   [10 s 0.30, 11 s 0.90, 12 s 0.91,"
        " 412 ms after its frame, alerts/a.jpg]",
        "  a box",
        "parcel on front: asked 9, fired 1, cleared 0, skipped 2",
        "delivery to parcel: jsonl a: delivered 1, waiting 0",
    ]
