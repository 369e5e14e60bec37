"""URLs that serve one picture for each request."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
from support import videos
from support.servers import jpeg

from vicort.runtime.core import Frame, SourceEvent
from vicort.runtime.errors import TruncatedSource
from vicort.runtime.sources import open_source
from vicort.runtime.sources.live import Patience

QUICK = Patience(open_timeout=2, read_timeout=1, first_delay=0.02, max_delay=0.1)
FPS = 5


class Snapshots:
    """A camera that answers each request with a picture of its number (mod 8)."""

    def __init__(self, kind: str = "jpeg", length: bool = True) -> None:
        self.asked: list[float] = []  # when each request came
        # the status of each answer, given its number; may wait
        self.act: Callable[[int], int] = lambda number: 200
        pictures = [videos.png(8 + i, 8) if kind == "png" else jpeg(i) for i in range(8)]
        camera = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = len(camera.asked)
                camera.asked.append(time.monotonic())
                self.send_response(camera.act(number))
                self.send_header("Content-Type", f"image/{kind}")
                if length:
                    self.send_header("Content-Length", str(len(pictures[number % 8])))
                self.end_headers()
                self.wfile.write(pictures[number % 8])

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/snapshot"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def watch(
    camera: Snapshots, count: int, wants: Any = None, **options: Any
) -> tuple[list[Frame], list[SourceEvent]]:
    """The first frames of a camera, and what became of its connection."""
    events: list[SourceEvent] = []
    options = {"live": True, "image_fps": FPS, "patience": QUICK} | options
    with open_source(camera.url, on_state=events.append, **options) as source:
        assert source.live
        return list(itertools.islice(source.frames(wants), count)), events


def usual_distance(places: list[float], tick: float) -> float:
    """How far from the nearest tick they are, in the middle of all."""
    return statistics.median(abs(place - tick - round(place - tick)) for place in places)


@pytest.mark.parametrize(("isolate", "length"), [(True, True), (False, False)])
def test_every_tick_is_one_request_and_ticks_do_not_drift(isolate: bool, length: bool) -> None:
    with Snapshots(length=length) as camera:
        camera.act = lambda number: time.sleep(0.3 / FPS) or 200  # adds up where ticks drift
        frames, events = watch(camera, 10, isolate=isolate)
        asked = camera.asked[:10]
    assert [videos.number(frame.image) for frame in frames] == [i % 8 for i in range(10)]
    assert [event.state for event in events] == ["connected"]
    # The first request opens the source, and the ticks begin when it is answered. On a busy machine
    # single requests come late.
    places = [at * FPS for at in asked[1:]]
    assert min(usual_distance(places, tick) for tick in places) < 0.15
    assert places[-1] - places[0] > 7.5
    assert all(a.time < b.time and a.index + 1 == b.index for a, b in itertools.pairwise(frames))
    assert abs(float(frames[-1].time - frames[1].time) - (asked[-1] - asked[1])) < 1 / FPS


def test_a_slow_server_is_asked_at_the_next_tick_after_its_answer() -> None:
    with Snapshots() as camera:
        camera.act = lambda number: time.sleep(1.5 / FPS) or 200
        watch(camera, 6)
        asked = camera.asked[1:6]
    steps = [(b - a) * FPS for a, b in itertools.pairwise(asked)]
    assert min(steps) > 1.45  # one request at a time
    assert statistics.median(steps) == pytest.approx(2, abs=0.4)


def test_a_png_is_a_snapshot_and_a_camera_may_change_its_size() -> None:
    with Snapshots("png") as camera:
        frames, events = watch(camera, 3)
    assert [frame.image.shape for frame in frames] == [(8, 8, 3), (8, 9, 3), (8, 10, 3)]
    assert [event.state for event in events] == ["connected", "resized", "resized"]


def test_an_error_is_retried_as_a_connection_that_is_lost() -> None:
    with Snapshots() as camera:
        camera.act = lambda number: 503 if number in (3, 4) else 200
        frames, events = watch(camera, 6)
    states = [event.state for event in events]
    assert states == ["connected", "lost", "reconnecting", "reconnecting", "connected"]
    assert "503" in events[1].reason or "5XX" in events[1].reason
    assert all(a.time < b.time for a, b in itertools.pairwise(frames))


def test_it_is_given_up_after_as_many_attempts_as_are_allowed() -> None:
    patience = Patience(attempts=2, first_delay=0.01, max_delay=0.02)
    with Snapshots() as camera:
        camera.act = lambda number: 404 if number > 2 else 200
        with pytest.raises(TruncatedSource, match="2 attempts"):
            watch(camera, 9, patience=patience)


def test_pictures_that_are_not_wanted_are_asked_for_too() -> None:
    times: list[Fraction] = []

    def wants(time: Fraction) -> bool:
        times.append(time)
        return len(times) == 5

    with Snapshots() as camera:
        (frame,), _ = watch(camera, 1, wants)
    assert videos.number(frame.image) == 4


@pytest.mark.parametrize("live", [None, False])
@pytest.mark.parametrize("length", [True, False])
def test_without_live_it_is_one_image(live: bool | None, length: bool) -> None:
    with Snapshots(length=length) as camera:
        with open_source(camera.url, live=live, patience=QUICK) as source:
            assert not source.live
            (frame,) = source
        assert len(camera.asked) == 1
    assert videos.number(frame.image) == 0


def test_it_ends_while_it_waits() -> None:
    with (
        Snapshots() as camera,
        open_source(camera.url, live=True, image_fps=Fraction(1, 60), isolate=False) as source,
    ):
        threading.Timer(0.3, source.stop).start()
        began = time.monotonic()
        list(source)
    assert time.monotonic() - began < 10
