"""The simulated camera: what it counts and how it judges, and a quick run that leaves a whole
result."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from vicort.benchmarks.studies import camera, camera_streams
from vicort.runtime.core import ChunkEvent


class Slow:
    """A session that takes one frame in 25, and `seconds` for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.pushed = seconds, []

    def wants(self, at: Fraction) -> bool:
        return at.denominator == 1

    def push(self, frame) -> None:
        self.pushed.append(frame.time)
        time.sleep(self.seconds)


def test_every_frame_has_its_moment():
    session, seen = Slow(0), []
    filmed = camera.TimedCamera(speed=20)
    start = time.monotonic()
    filmed.film(session, 4, seen.append)
    assert time.monotonic() - start >= 3.96 / 20
    assert seen == [Fraction(index, 25) for index in range(100)]
    assert session.pushed == [0, 1, 2, 3]
    assert filmed.moment(Fraction(4)) - filmed.moment(Fraction(0)) == pytest.approx(4 / 20)


def test_a_session_that_does_not_keep_up_makes_frames_late():
    assert camera.TimedCamera(speed=20).film(Slow(0.3), 2, lambda at: None) > 10


def test_lag_counts_from_the_moment_of_the_last_frame():
    filmed = camera.TimedCamera(speed=10)
    filmed.film(Slow(0), 1, lambda at: None)
    record = camera.Record(filmed, 10, rows=10)
    time.sleep(0.2)
    before = time.monotonic()
    record.event(ChunkEvent(0, 16, Fraction(0), Fraction(1), 128, 128, 1.0))
    after = time.monotonic()
    assert set(record.lags) == {1}
    assert before <= filmed.moment(Fraction(1)) + record.lags[1][0] / 1e3 + 1e-6
    assert filmed.moment(Fraction(1)) + record.lags[1][0] / 1e3 <= after + 1e-6


def chunks(lag_a_second: float) -> list[tuple[float, dict]]:
    whole = [
        (end * (1 + lag_a_second), {"event": "chunk", "frames": 16, "end": end})
        for end in (8.0, 16.0, 24.0)
    ]
    return [
        *whole,
        (99.0, {"event": "chunk", "frames": 2, "end": 25.0}),
        (100.0, {"event": "summary"}),
    ]


@pytest.mark.parametrize("grows", [0.0, 0.25])
def test_growth_of_lag(grows):
    assert camera_streams._growth(chunks(grows)) == pytest.approx(grows)


def test_too_few_chunks_tell_no_growth_and_are_not_held():
    assert camera_streams._growth(chunks(0)[:1]) == math.inf


@pytest.mark.parametrize(
    ("most", "held", "tried"),
    [
        (200, 128, [32, 64, 128]),
        (100, 96, [32, 64, 96, 128]),
        (70, 64, [32, 64, 96, 128]),
        (20, 16, [16, 32]),
        (5, 0, [16, 32]),
    ],
)
def test_most_streams_are_found(monkeypatch, most, held, tried):
    monkeypatch.setattr(
        camera_streams,
        "_point",
        lambda engines, clip, seconds, count: {"streams": count, "held": count <= most},
    )
    result = camera_streams.measure(Path("engines"), Path("clip"), 40, (32, 64, 128))
    assert result["held"] == held
    assert [point["streams"] for point in result["points"]] == tried


def test_quick_run_writes_json_and_picture(tiny_engines, tmp_path, monkeypatch):
    monkeypatch.setattr(camera, "QUICK", replace(camera.QUICK, hour_s=40))
    out = tmp_path / "camera.json"
    assert (
        camera.main(
            ["--quick", "--only", "hour", "--engine-dir", str(tiny_engines), "--out", str(out)]
        )
        == 0
    )
    parts = json.loads(out.read_text())["parts"]
    hour = parts["hour"]
    assert hour["camera_frames"] == 25 * camera.QUICK.hour_s
    assert hour["frames"] == 2 * camera.QUICK.hour_s
    assert hour["asked"] == hour["answered"] == camera.QUICK.hour_s - 1
    assert hour["rows"][-1]["pages"]["device"] > 0
    assert hour["lag_ms"]["n"] == hour["chunks"]
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_parts_are_added_to_what_is_there(tiny_engines, tmp_path):
    """Streams through vicort-run itself, and a stretch at true 1x."""
    out = tmp_path / "camera.json"
    for part in ("real-time", "streams"):
        assert (
            camera.main(
                ["--quick", "--only", part, "--engine-dir", str(tiny_engines), "--out", str(out)]
            )
            == 0
        )
    parts = json.loads(out.read_text())["parts"]
    assert set(parts) == {"real-time", "streams"}
    assert parts["real-time"]["asked"] == parts["real-time"]["answered"] == 2
    assert parts["streams"]["points"][0]["answers"] == 2


def test_missing_engines_are_one_line(tmp_path, capsys):
    assert (
        camera.main(
            [
                "--only",
                "real-time",
                "--engine-dir",
                str(tmp_path / "none"),
                "--out",
                str(tmp_path / "x.json"),
            ]
        )
        != 0
    )
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
