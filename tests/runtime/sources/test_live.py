"""Live sources against servers on loopback that are killed, stalled, slowed, fed garbage and
started again."""

import itertools
import json
import signal
import subprocess
import threading
import time
import traceback
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import videos
from support.rtsp_cameras import rtsp_server, skip_without_rtsp
from support.servers import Camera, Playlist, running

from vicort.runtime.core import Frame, SourceEvent
from vicort.runtime.errors import SourceError, TruncatedSource
from vicort.runtime.sources import open_source
from vicort.runtime.sources.live import JUMP, LiveSource, Patience
from vicort.runtime.sources.source import Ending, Source, Wanted

QUICK = Patience(open_timeout=2, read_timeout=0.6, first_delay=0.02, max_delay=0.1, steady=0.3)


def watch(
    url: str, enough, *, patience: Patience = QUICK, **options
) -> tuple[list[Frame], list[SourceEvent]]:
    """What a source gives until `enough(frames, events)`; 15 seconds at most."""
    events: list[SourceEvent] = []
    frames: list[Frame] = []
    limit = time.monotonic() + 15
    with open_source(url, patience=patience, on_state=events.append, **options) as source:
        assert source.live
        for frame in source.frames():
            frames.append(frame)
            assert time.monotonic() < limit, events
            if enough(frames, events):
                break
    return frames, events


def states(events: list[SourceEvent]) -> list[str]:
    return [event.state for event in events]


def one_clock(frames: list[Frame]) -> bool:
    return all(a.time < b.time and a.index + 1 == b.index for a, b in itertools.pairwise(frames))


def connections(count: int, frames_more: int = 3):
    """Enough: so many connections, and some frames of the last one."""

    def enough(frames, events):
        last = [event.at for event in events if event.state == "connected"]
        return len(last) >= count and sum(frame.time >= last[-1] for frame in frames) >= frames_more

    return enough


# ---- MJPEG over HTTP ----


def test_the_end_of_a_live_stream_means_once_more():
    with running(Camera(fps=50)) as camera:
        camera.act = lambda wire, count: count < 10
        frames, events = watch(camera.url, connections(3))
    assert states(events) == ["connected", *["lost", "reconnecting", "connected"] * 2]
    assert one_clock(frames)
    assert len({videos.number(frame.image) for frame in frames}) == 8


def test_pictures_without_timestamps_are_timed_by_their_arrival():
    """FFmpeg would say 25 a second, whatever the camera does."""
    received, arrived = (
        [],
        threading.Semaphore(2),
    )  # FFmpeg gives a picture when the next one begins

    def enough(frames, events):
        received.append(time.monotonic())
        arrived.release()
        return len(frames) == 8

    with running(Camera(fps=5)) as camera:
        # however busy the machine is: no picture is sent before that two before it was received
        camera.act = lambda wire, count: arrived.acquire(timeout=60)
        began = time.monotonic()
        frames, _ = watch(camera.url, enough)
    assert 1 < frames[-1].time < received[-1] - began


def test_a_stalled_camera_is_left_after_the_read_time_out_and_the_clock_goes_on():
    with running(Camera(fps=50)) as camera:
        stalled = threading.Event()

        def stall_once(wire, count):
            if count == 10 and not stalled.is_set():
                stalled.set()
                time.sleep(3)
                return False
            return True

        camera.act = stall_once
        frames, events = watch(camera.url, connections(2))
    assert states(events) == ["connected", "lost", "reconnecting", "connected"]
    assert events[1].reason == "nothing came in time"
    assert one_clock(frames)
    gap = max(b.time - a.time for a, b in itertools.pairwise(frames))
    assert 0.5 < gap < 2.5  # as on the wall: the time-out, and the way back


def test_a_camera_that_is_killed_is_found_again_when_it_is_back():
    camera = Camera(fps=50)
    port = camera.port
    back: list[Camera] = []

    def enough(frames, events):
        if len(frames) == 5:
            camera.kill()
            threading.Timer(0.4, lambda: back.append(Camera(fps=50, port=port))).start()
        return connections(2)(frames, events)

    try:
        frames, events = watch(camera.url, enough)
    finally:
        for each in back:
            each.kill()
    assert states(events)[:3] == ["connected", "lost", "reconnecting"]
    assert states(events)[-2:] == ["reconnecting", "connected"]
    assert any(
        event.reason == "Connection refused" for event in events if event.state == "reconnecting"
    )
    assert [event.attempt for event in events if event.state == "reconnecting"] == list(
        range(1, len(events) - 2)
    )
    assert one_clock(frames)


def test_garbage_in_the_stream_does_no_more_than_cost_a_connection():
    with running(Camera(fps=50)) as camera:
        noise = np.random.default_rng(1).bytes(50_000)

        def spoil(wire, count):
            if count % 10 == 9:
                wire.write(noise)
            return True

        camera.act = spoil
        frames, _ = watch(camera.url, lambda frames, events: len(frames) == 40)
    assert one_clock(frames)


def test_data_without_a_picture_is_as_good_as_silence():
    with running(Camera(fps=50)) as camera:
        camera.act = lambda wire, count: (
            count != 10 or camera.requests > 1 or camera.send_instead(b"no picture") is None
        )

        def enough(frames, events):
            if states(events).count("lost") == 1 and camera.requests > 1:
                camera.send_instead(None)
            return connections(2)(frames, events)

        restore = threading.Timer(1.5, lambda: camera.send_instead(None))
        restore.start()
        frames, events = watch(camera.url, enough)
        restore.join()
    assert states(events)[:2] == ["connected", "lost"]
    assert "no picture for 0.6 s, though data comes" in {event.reason for event in events}
    assert one_clock(frames)


def test_a_new_resolution_is_told_and_goes_on():
    with running(Camera(fps=50)) as camera:
        camera.act = lambda wire, count: count != 10 or camera.resize((320, 240)) is None
        frames, events = watch(camera.url, lambda frames, events: len(frames) == 20)
    assert {frame.image.shape for frame in frames} == {(120, 160, 3), (240, 320, 3)}
    assert [(event.state, event.reason) for event in events] == [
        ("connected", ""),
        ("resized", "160x120 to 320x240"),
    ]
    assert one_clock(frames)


def test_it_is_given_up_after_so_many_attempts_and_says_so():
    camera = Camera(fps=50)
    frames, events = [], []
    patience = Patience(
        open_timeout=1, read_timeout=0.5, first_delay=0.01, max_delay=0.02, attempts=3
    )

    def kill_after_three(source):
        for frame in source.frames():
            frames.append(frame)
            if len(frames) == 3:
                camera.kill()

    with (
        open_source(camera.url, patience=patience, on_state=events.append) as source,
        pytest.raises(TruncatedSource) as caught,
    ):
        kill_after_three(source)
    assert states(events) == ["connected", "lost", *["reconnecting"] * 3, "given-up"]
    assert "is gone (3 attempts, Connection refused)" in str(caught.value)
    assert len(frames) >= 3


def test_stop_ends_it_from_another_thread_even_between_attempts():
    camera = Camera(fps=50)
    slow = Patience(open_timeout=1, read_timeout=0.5, first_delay=60, max_delay=60)
    with open_source(camera.url, patience=slow) as source:
        for frame in source.frames():
            if frame.index == 3:
                camera.kill()
                threading.Timer(0.3, source.stop).start()
                began = time.monotonic()
    assert time.monotonic() - began < 5


def test_stop_ends_it_while_frames_come_that_nobody_wants():
    """It used to go on for ever, since only frames that are wanted reach whoever could stop."""
    with (
        running(Camera(fps=50)) as camera,
        open_source(camera.url, patience=QUICK, live=True) as source,
    ):
        threading.Timer(0.5, source.stop).start()
        began = time.monotonic()
        assert list(source.frames(lambda at: False)) == []
    assert 0.4 < time.monotonic() - began < 5


def later(port: int, seconds: float, back: list[Camera]) -> threading.Timer:
    """A camera on that port, so many seconds from now."""
    timer = threading.Timer(seconds, lambda: back.append(Camera(fps=50, port=port)))
    timer.start()
    return timer


def test_what_is_not_there_yet_is_tried_until_it_is():
    camera, back, said = Camera(fps=50), [], []
    camera.kill()
    coming = later(camera.port, 0.6, back)
    try:
        frames, events = watch(
            camera.url, connections(1), live=True, at_once=False, warn=said.append
        )
    finally:
        coming.join()
        for each in back:
            each.kill()
    assert set(states(events)[:-1]) == {"reconnecting"}
    assert [event.attempt for event in events[:-1]] == list(range(1, len(events)))
    assert {(event.reason, event.at) for event in events[:-1]} == {("Connection refused", 0)}
    assert (states(events)[-1], frames[0].time, frames[0].index) == ("connected", 0, 0)
    assert one_clock(frames)
    assert len(said) == 1
    assert "Connection refused" in said[0]
    assert "geheim" not in json.dumps([event.to_json() for event in events]) + said[0]


def test_what_never_comes_is_given_up_after_so_many_attempts():
    camera, events = Camera(), []
    camera.kill()
    patience = Patience(first_delay=0.01, max_delay=0.02, attempts=2)
    source = open_source(
        camera.url, live=True, at_once=False, patience=patience, on_state=events.append
    )
    with (
        source,
        pytest.raises(TruncatedSource, match=r"is gone \(2 attempts, Connection refused\)"),
    ):
        list(source)
    assert states(events) == ["reconnecting", "reconnecting", "given-up"]


def test_stop_ends_the_wait_for_what_never_comes():
    camera = Camera()
    camera.kill()
    with open_source(
        camera.url, live=True, at_once=False, patience=Patience(first_delay=60)
    ) as source:
        threading.Timer(0.3, source.stop).start()
        began = time.monotonic()
        assert list(source) == []
    assert time.monotonic() - began < 5


def test_what_is_stopped_while_it_opens_gives_nothing():
    opened = Plays([Fraction(0)])
    source = LiveSource("slow", lambda: source.stop() or opened, patience=QUICK)
    assert list(source) == []


@pytest.mark.parametrize(
    ("spec", "live", "waits"),
    [
        ("rtsp://127.0.0.1:1/x", None, True),
        ("rtsp://127.0.0.1:1/x", True, True),
        ("rtsp://127.0.0.1:1/x", False, False),
        ("http://127.0.0.1:1/x", True, True),
        ("http://127.0.0.1:1/x", None, False),  # whether it is live, only a look at it can tell
        ("/dev/video77", None, True),
        ("/dev/video77", False, False),
        ("gopher://127.0.0.1:1/x", True, False),
        ("no-such-clip.mp4", True, False),
        ("/dev/no-such-device", True, False),
    ],
)
def test_only_what_is_known_to_be_live_is_waited_for(spec, live, waits):
    if waits:
        with open_source(spec, live=live, at_once=False) as source:
            assert source.live
    else:
        with pytest.raises(SourceError):
            open_source(spec, live=live, at_once=False)


def test_no_credentials_anywhere():
    with running(Camera(fps=50)) as camera:
        camera.act = lambda wire, count: count < 5
        said: list[str] = []
        _, events = watch(camera.url, connections(2), warn=said.append)
        url = camera.url + "?key=geheim"
    with pytest.raises(SourceError) as caught:
        open_source(url, patience=QUICK)
    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)
    said.append("".join(traceback.format_exception(error)))
    assert "Connection refused" in said[-1]
    assert "geheim" not in json.dumps([event.to_json() for event in events]) + "".join(said)


# ---- HLS ----


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hls")


def test_hls_is_live_goes_through_a_failure_and_ends_when_it_becomes_a_recording(segments):
    with running(Playlist(segments)) as playlist:

        def act(frames, events):
            if len(frames) == 30 and not playlist.broken:
                playlist.broken = True
                threading.Timer(1.5, lambda: setattr(playlist, "broken", False)).start()
            if states(events).count("connected") == 2:
                playlist.over = True
            return False

        frames, events = watch(playlist.url, act)
    assert states(events)[:3] == ["connected", "lost", "reconnecting"]
    assert states(events)[-1] == "ended"
    assert states(events).count("connected") == 2
    assert one_clock(frames)


def test_a_playlist_leads_to_no_file_of_this_machine(tmp_path):
    videos.write_video(tmp_path / "private.ts", 50)
    with running(Playlist(tmp_path)) as playlist:
        playlist.text = lambda: (
            "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
            f"file://{tmp_path / 'private.ts'}\n#EXT-X-ENDLIST\n"
        )
        with pytest.raises(SourceError):
            next(iter(open_source(playlist.url, patience=QUICK)))


# ---- RTSP ----


@pytest.fixture(scope="module")
def needs_rtsp() -> None:
    skip_without_rtsp()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_stalled_killed_and_started_again(needs_rtsp, transport):
    server, port = rtsp_server()
    others: list[subprocess.Popen] = []
    url = f"rtsp://admin:geheim@127.0.0.1:{port}/cam"

    def act(frames, events):
        if len(frames) == 40:
            server.send_signal(signal.SIGSTOP)  # silence
        if "lost" in states(events) and states(events).count("connected") == 2:
            return connections(2)(frames, events)
        return False

    def restart():
        server.kill()
        server.wait()
        others.append(rtsp_server(port)[0])

    timer = threading.Timer(3.0, restart)
    timer.start()
    try:
        frames, events = watch(url, act, rtsp_transport=transport)
    finally:
        timer.join()
        for each in (server, *others):
            each.kill()
            each.wait()
    assert states(events)[:3] == ["connected", "lost", "reconnecting"]
    assert states(events)[-1] == "connected"
    assert one_clock(frames)
    assert frames[0].image.shape == (120, 160, 3)
    assert "geheim" not in json.dumps([event.to_json() for event in events])


def test_rtsp_that_starts_after_the_run(needs_rtsp):
    server, port = rtsp_server()
    server.kill()
    server.wait()
    back: list[subprocess.Popen] = []
    coming = threading.Timer(1.0, lambda: back.append(rtsp_server(port)[0]))
    coming.start()
    try:
        frames, events = watch(
            f"rtsp://admin:geheim@127.0.0.1:{port}/cam", connections(1), at_once=False
        )
    finally:
        coming.join()
        for each in back:
            each.kill()
            each.wait()
    assert (states(events)[0], states(events)[-1]) == ("reconnecting", "connected")
    assert frames[0].time == 0
    assert one_clock(frames)


# ---- the rules, without a network ----


class Plays(Source):
    """Stamps, as a connection's frames."""

    untimed = False

    def __init__(self, stamps):
        super().__init__("plays", live=True)
        self.stamps = stamps

    def frames(self, wants=None):
        left_out = None
        for index, stamp in enumerate(self.stamps):
            frame = Frame(np.zeros((4, 4, 3), np.uint8), Fraction(stamp), index)
            wanted = wants is None or wants(frame.time)
            if wanted == Wanted.BOTH and left_out:
                yield left_out
            if wanted:
                yield frame
            left_out = None if wanted else frame
        self.ending = Ending(left_out, Fraction(stamp) + 1) if left_out else None


def test_the_clocks_of_many_connections_do_not_multiply_their_denominators():
    bases = itertools.cycle([90_000, 1000, 12_800, 30_000, 16_000, 14_400_000, 44_100, 1001])
    made = []

    def again():
        base = next(bases)
        made.append(base)
        return Plays([Fraction(i * 7, base) for i in range(3)])

    patience = Patience(first_delay=0.0, max_delay=0.0)
    source = LiveSource("many", again, patience=patience)
    largest = 0
    for frame in source.frames():
        largest = max(largest, frame.time.denominator)
        if len(made) > 400:
            source.stop()
    assert largest <= 10**6 * max(made)


STAMPS = st.lists(st.fractions(0, 100_000), min_size=1, max_size=20, unique=True).map(sorted)


@given(st.lists(STAMPS, min_size=1, max_size=4))
def test_time_rises_over_any_connections_and_never_runs_ahead_of_the_wall(connections):
    later = [Plays([stamp - stamps[0] for stamp in stamps]) for stamps in connections]
    first, *rest = later
    queue = iter(rest)

    def again():
        try:
            return next(queue)
        except StopIteration:
            raise SourceError("no more") from None

    patience = Patience(first_delay=0, max_delay=0, attempts=len(connections))
    frames: list[Frame] = []
    with pytest.raises(TruncatedSource):
        frames.extend(LiveSource("plays", again, first=first, patience=patience).frames())
    assert len(frames) == sum(map(len, connections))
    assert one_clock(frames)
    assert all(b.time - a.time <= JUMP + 5 for a, b in itertools.pairwise(frames))


def test_it_began_when_its_first_frame_came():
    """Whatever connections follow."""
    queue = iter([Plays([Fraction(5), Fraction(6)]), Plays([Fraction(0)])])

    def again():
        try:
            return next(queue)
        except StopIteration:
            raise SourceError("no more") from None

    patience = Patience(first_delay=0, max_delay=0, attempts=1)
    source, began = LiveSource("plays", again, patience=patience), []
    assert source.began is None
    before = datetime.now(UTC)
    with pytest.raises(TruncatedSource):
        began.extend(source.began for _ in source.frames())
    assert before <= began[0] <= datetime.now(UTC)
    assert began == [began[0]] * 3


@given(
    st.lists(STAMPS, min_size=1, max_size=4),
    st.lists(st.sampled_from([Wanted.NO, Wanted.YES, Wanted.BOTH]), max_size=80),
)
def test_the_frame_before_is_had_with_its_own_time_over_all_connections(connections, decisions):
    queue = iter([Plays([stamp - stamps[0] for stamp in stamps]) for stamps in connections])
    judged: list[tuple[Fraction, Wanted]] = []

    def again():
        try:
            return next(queue)
        except StopIteration:
            raise SourceError("no more") from None

    def wants(at):
        wanted = decisions[len(judged)] if len(judged) < len(decisions) else Wanted.NO
        judged.append((at, wanted))
        return wanted

    patience = Patience(first_delay=0, max_delay=0, attempts=len(connections))
    source, found = LiveSource("plays", again, patience=patience), []
    with pytest.raises(TruncatedSource):
        found.extend((frame.index, frame.time) for frame in source.frames(wants))
    expected = []
    for number, (_, wanted) in enumerate(judged):
        before_left_out = number > 0 and judged[number - 1][1] == Wanted.NO
        expected += [number - 1] if wanted == Wanted.BOTH and before_left_out else []
        expected += [number] if wanted else []
    assert found == [(number, judged[number][0]) for number in expected]
    assert bool(source.ending) == (judged[-1][1] == Wanted.NO)
    if source.ending:
        assert source.ending.frame.index == len(judged) - 1
        assert source.ending.time == judged[-1][0] + 1


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_delays_double_up_to_the_longest_and_are_spread_over_half(attempt, luck):
    patience = Patience(first_delay=0.5, max_delay=30)
    whole = min(30, 0.5 * 2 ** min(attempt - 1, 10))
    assert whole / 2 <= patience.delay(attempt, luck) <= whole


def test_hls_has_a_longer_read_time_out():
    assert Patience().timeouts("https://user:x@host/live/index.M3U8?x=1") == (10, 30)
    assert Patience().timeouts("rtsp://host/cam") == (10, 10)
    assert Patience(3, 4).timeouts("https://host/index.m3u8") == (3, 4)
