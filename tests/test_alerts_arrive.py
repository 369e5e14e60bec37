"""Alerts from the camera to the receiver: RTSP in, webhook and MQTT out, with the real engines."""

import base64
import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.processes import kill, python
from support.receivers import Broker, HookServer, needs_mosquitto, subscriber, until
from support.rtsp_cameras import rtsp_server, skip_without_rtsp
from support.servers import running

CLIP = Path(__file__).parent / "fixtures" / "shapes.mp4"
GONE = 4.9  # seconds: when the circle of the clip has left
FILE = """
streams:
  front: {{url: "rtsp://admin:${{CAMERA_PASSWORD}}@127.0.0.1:{camera}/cam", system: full-history}}
alerts:
  - name: circle
    question: was there a circle?
    ask_every: 500ms
    window: 1s
    clear: {{for: 2 of 2}}
    then: what is there now?
    notify:
      - {{webhook: "{hook}", secret_env: HOOK_SECRET, allow_private: true}}
      - {{mqtt: "mqtt://127.0.0.1:{broker}/vicort/{{stream}}/{{alert}}"}}
"""


@pytest.mark.slow
@needs_mosquitto
def test_a_camera_fires_while_the_thing_is_there_and_clears_when_it_is_gone(tmp_path, tiny_engines):
    skip_without_rtsp(files=True)
    server, camera = rtsp_server(file=CLIP)
    with (
        running(HookServer()) as hook,
        running(Broker(tmp_path)) as broker,
        subscriber(broker.port) as topics,
    ):
        text = FILE.format(camera=camera, hook=hook.url(), broker=broker.port)
        (tmp_path / "alerts.yaml").write_text(text)
        child = python(
            *(
                "-c",
                "import os, sys; os.chdir(sys.argv.pop(1)); from vicort.runtime.cli.run "
                "import main; sys.exit(main())",
            ),
            *(str(tmp_path), "--alerts", "alerts.yaml", "--format", "jsonl"),
            *("--engine-dir", str(tiny_engines)),
            text=True,
            environment={"CAMERA_PASSWORD": "geheim", "HOOK_SECRET": "hush"},
        )
        try:
            until(lambda: len(hook.asked) == 2 or child.poll() is not None, 60)
            until(lambda: child.poll() is not None or states(topics) == [b"ON", b"OFF"], 20)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
        finally:
            kill(child)
            server.kill()
            server.wait()
    events = [json.loads(line) for line in out.splitlines()]
    fired, cleared = [each for each in events if each["event"] == "alert"]
    assert (child.returncode, fired["state"], cleared["state"]) == (130, "fired", "cleared")
    assert fired["at"] < GONE < cleared["at"]
    assert fired["description"] == "yellow circle"
    assert 0 < fired["delay_ms"] < 10_000
    sent = [json.loads(each.body) for each in hook.asked]
    assert [each["key"] for each in sent] == [fired["key"], cleared["key"]]
    assert sent[0]["series"] == fired["series"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(sent[0]["picture_base64"]))))
    yellow = (shown[..., 0] > 180) & (shown[..., 1] > 180) & (shown[..., 2] < 100)
    assert yellow.mean() > 0.02, "the circle is on the picture"
    assert all("webhook-signature" in each.headers for each in hook.asked)
    assert {each.topic for each in topics} >= {
        f"vicort/front/circle/{name}" for name in ("state", "attributes", "picture")
    }
    (delivery,) = [each["state"]["targets"] for each in events if each["event"] == "delivery"]
    assert [each["delivered"] for each in delivery.values()] == [2, 2]
    counts = next(each for each in events if each["event"] == "alerts")["alerts"]["circle"]
    assert (counts["fired"], counts["cleared"]) == (1, 1)
    assert "geheim" not in out + err
    assert "hush" not in out + err


def states(topics):
    return [each.payload for each in topics if each.topic == "vicort/front/circle/state"]
