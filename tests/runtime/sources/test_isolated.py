"""Sources that a process of their own decodes: the same frames, bounded memory and time, and an end
that harms nothing else."""

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import videos
from support.hostile import gif, mp4, png, text_chunks

from vicort.runtime.core import MOTION_CELL, Motion
from vicort.runtime.errors import SourceError
from vicort.runtime.sources import decoder_host, decoder_server, open_source
from vicort.runtime.sources.decoder_link import Link
from vicort.runtime.sources.frame_ring import new_ring, slot_bytes
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.sources.source import Wanted

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"
SMALL = Limits(seconds=1.0, memory=400 << 20)


def same(a, b) -> bool:
    if a is None or b is None:
        return a is b
    return (a.refreshed, a.top, a.left) == (b.refreshed, b.top, b.left) and np.array_equal(
        a.cells, b.cells
    )


def decoders() -> set[int]:
    """The server that this process started, and its processes."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if b"decoder_server" in (folder / "cmdline").read_bytes():
                    parents[int(folder.name)] = int(fields[1])
    servers = {each for each, parent in parents.items() if parent == os.getpid()}
    return servers | {each for each, parent in parents.items() if parent in servers}


def refused(path: Path, limits: Limits = SMALL) -> str:
    with pytest.raises(SourceError) as caught, open_source(str(path), limits=limits) as source:
        list(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("motion", [False, True])
@pytest.mark.parametrize("expected", [(), (None,), (3,)])
@pytest.mark.parametrize("rate", [None, 3])
def test_the_frames_are_those_of_a_source_in_this_process(motion, expected, rate) -> None:
    found = []
    for isolate in (True, False):
        sampler = Sampler(rate)
        with open_source(str(CLIP), motion=motion, isolate=isolate) as source:
            for each in expected:
                source.expect(each)
            about = (source.name, source.live, source.frames_total, source.duration)
            found.append((about, list(source.frames(sampler.accepts)), source.warnings))
    (about, frames, warnings), (about_here, here, warnings_here) = found
    assert about == about_here
    assert warnings == warnings_here
    assert len(frames) == len(here) > 3 * 20  # a clip of 23 s
    for frame, other in zip(frames, here, strict=True):
        assert (frame.time, frame.index) == (other.time, other.index)
        assert np.array_equal(frame.image, other.image)
        assert same(frame.motion, other.motion)
    assert any(frame.motion and frame.motion.cells is not None for frame in here) is motion


def bursts() -> list[Fraction]:
    """A screen recorder: pictures 30 times a second, and stills of up to 4 s."""
    numbers, times = random.Random(5), [Fraction(0)]
    while len(times) < 90:
        still = numbers.random() < 0.15
        step = Fraction(numbers.randint(300, 4000), 1000) if still else Fraction(1, 30)
        times.append(times[-1] + step)
    return times


@pytest.mark.parametrize("motion", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_bursts_too_are_those_of_a_source_in_this_process(tmp_path, motion, ahead) -> None:
    """With the frame before, where it is wanted, too."""
    videos.write_video(tmp_path / "a.mkv", bursts(), last=3)
    found = []
    for isolate in (False, True):
        sampler, both = Sampler(2), []

        def wants(at: Fraction, sampler: Sampler = sampler, both: list = both) -> Wanted:
            stays = sampler.stays(at)
            if stays:
                sampler.take_left_out()
                both.append(at)
            accepted = sampler.accepts(at)
            return Wanted.BOTH if stays else Wanted(accepted)

        with open_source(str(tmp_path / "a.mkv"), motion=motion, isolate=isolate) as source:
            if ahead:
                source.expect(2)
            frames = list(source.frames(wants))
            found.append((frames, both, source.ending))
    (here, both, end), (apart, same_both, same_end) = found
    assert both == same_both
    assert len(both) >= 5
    assert [(frame.time, frame.index) for frame in here] == [
        (frame.time, frame.index) for frame in apart
    ]
    for frame, other in zip(here, apart, strict=True):
        assert np.array_equal(frame.image, other.image)
        assert same(frame.motion, other.motion)
    assert (end is None) == (same_end is None)
    if end:
        assert end.time == same_end.time
        assert np.array_equal(end.frame.image, same_end.frame.image)


def test_frames_that_are_kept_are_not_overwritten(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 200)
    with open_source(str(tmp_path / "a.mp4")) as source:
        frames = list(source)
    assert [videos.number(frame.image) for frame in frames] == list(range(200))


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    slots=st.integers(1, 4),
    kept=st.lists(st.booleans(), max_size=12),
)
def test_a_ring_gives_what_was_written(height: int, width: int, slots: int, kept) -> None:
    """However many frames the reader keeps."""
    ring, file = new_ring(slot_bytes(height, width))
    os.close(file)
    ring.slots, held = slots, []
    ring._free, ring._given = type(ring._free)(range(slots)), set()
    for number, keep in enumerate(kept):
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        cells = np.full((-(-height // MOTION_CELL), -(-width // MOTION_CELL)), number, np.float32)
        motion = Motion(keep, cells, number, 0)
        slot = ring.give(last=True)
        found, moved = ring.read(slot, *ring.write(slot, image, motion))
        assert same(moved, motion)
        assert np.array_equal(found, image)
        if keep:
            held.append((found, image))
        del found
    assert all(np.array_equal(found, image) for found, image in held)
    held.clear()
    assert len(ring._free) == slots


@pytest.mark.parametrize(
    "picture",
    [(0, 9, 9, None), (0, 0, 8, None), (-1, 8, 8, None), (9999, 8, 8, None), (0, 8, 8, [1, 2])],
)
def test_a_ring_is_read_only_where_it_is(picture) -> None:
    ring, file = new_ring(slot_bytes(8, 8))
    os.close(file)
    ring.size = slot_bytes(8, 8)
    with pytest.raises((ValueError, TypeError), match=r"slot|cells|unpack"):
        ring.read(*picture) if picture[1] != 9 else ring.read(0, 90, 90, None)


def test_a_table_that_needs_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for tracks in (1, 4):
        path.write_bytes(mp4(80_000_000, tracks=tracks))
        assert len(path.read_bytes()) < 2_500
        began = time.monotonic()
        refused(path)
        assert time.monotonic() - began < 15


def test_an_edit_list_without_end_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4(1_000, size=1, edits=10_000))
    assert "1 s of processor time gave no picture: allow more with `--max-decode-time`" in refused(
        path
    )


def test_a_picture_with_gigabytes_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 8, text_chunks(50, 40)))
    line = refused(tmp_path / "a.png", Limits(seconds=0.3, memory=400 << 20))
    assert "processor time" in line or "needs more than" in line


def test_memory_that_ends_is_named_with_the_option(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", 3)
    (tmp_path / "big.png").write_bytes(png(8_000, 8_000))
    assert "needs more than 134 MB to decode: allow more with `--max-decode-memory`" in refused(
        tmp_path / "big.png", Limits(memory=128 << 20)
    )
    with open_source(str(tmp_path / "big.png")) as source:
        assert next(iter(source)).image.shape == (8_000, 8_000, 3)


def test_large_pictures_of_a_small_file_need_room_for_a_few(tmp_path: Path) -> None:
    """In a ring of one slot."""
    (tmp_path / "a.gif").write_bytes(gif(4_096, 4_096, 12))
    with open_source(str(tmp_path / "a.gif"), limits=Limits(memory=600 << 20)) as source:
        source.expect(None)
        assert sum(frame.image.shape == (4_096, 4_096, 3) for frame in source) == 12


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, r"the decoder process died \(exit code -11\)"),
        (signal.SIGKILL, "the decoder process was killed, as the system does where memory runs"),
    ],
)
def test_a_decoder_that_dies_ends_its_source_and_no_other(number: int, words: str) -> None:
    with open_source(str(CLIP)) as other:
        rest = iter(other)
        next(rest)
        before = decoders()
        with open_source(str(CLIP)) as source:
            frames = iter(source)
            next(frames)
            (victim,) = decoders() - before
            os.kill(victim, number)
            with pytest.raises(SourceError, match=words):
                for _ in frames:
                    pass
        assert sum(1 for _ in rest) > 100


def test_a_server_that_is_ended_from_outside_is_started_again() -> None:
    with open_source(str(CLIP)) as source:
        next(iter(source))
    for each in decoders():
        with suppress(ProcessLookupError):  # a child of the server, which ends with it
            os.kill(each, signal.SIGKILL)
    with open_source(str(CLIP)) as source:
        assert next(iter(source)).index == 0


def test_a_closed_source_leaves_no_process_and_no_file() -> None:
    with open_source(str(CLIP)) as source:
        next(iter(source))
    before, files = decoders(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_source(str(CLIP)) as source:
            frame = next(iter(source))
    limit = time.monotonic() + 5
    while not decoders() <= before and time.monotonic() < limit:
        time.sleep(0.02)
    assert decoders() <= before
    del frame, source
    assert len(os.listdir("/proc/self/fd")) <= files
    states = [(Path("/proc") / str(each) / "stat").read_text().split()[2] for each in decoders()]
    assert "Z" not in states


def test_a_pipe_that_nobody_writes_to_is_left_in_time(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writing = os.open(tmp_path / "fifo", os.O_RDWR)
    os.write(writing, CLIP.read_bytes()[:100])
    decoder_host.HOST.start()
    with pytest.raises(SourceError, match=r"nothing came in 0\.5 s: write a video to it"):
        open_source(str(tmp_path / "fifo"), patience=Patience(open_timeout=0.5))
    os.close(writing)


def test_a_source_that_waits_is_stopped_from_another_thread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writing = os.open(tmp_path / "fifo", os.O_RDWR)
    videos.write_video(tmp_path / "a.ts", 50)
    content = (tmp_path / "a.ts").read_bytes()
    threading.Thread(target=os.write, args=(writing, content), daemon=True).start()
    with open_source(str(tmp_path / "fifo"), stream=0) as source:
        timer = threading.Timer(0.5, source.stop)
        timer.start()
        began = time.monotonic()
        list(source)
        assert time.monotonic() - began < 5
    os.close(writing)


def test_a_decoder_may_not_write_or_start_programs_or_reach_the_network() -> None:
    """Tried in a process of its own, as the filter cannot be taken off."""
    code = """
import os, socket, sys
from vicort.runtime.sources.decoder_sandbox import enter_sandbox
assert enter_sandbox(network=False, devices=False) == "", "no filter here"
def fails(act):
    try: act()
    except OSError as error: return error.errno in (1, 13)
    return False
checks = [
    fails(lambda: open(sys.argv[1], "w")), fails(os.fork), fails(lambda: os.unlink(sys.executable)),
    fails(lambda: os.execv("/bin/true", ["true"])), fails(lambda: os.kill(os.getppid(), 0)),
    fails(lambda: socket.socket()), fails(lambda: os.mkdir(sys.argv[1])),
]
print(checks, open("/proc/self/status").read().count("NoNewPrivs:\\t1"))
import threading; t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "/nonexistent-folder-of-a-test"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{[True] * 7} 1", "thread"], done


@pytest.mark.parametrize("challenged", [False, True])
def test_a_password_is_not_taken_to_another_rtsp_server(challenged: bool) -> None:
    """As FFmpeg does, which is tried too, so that this test does not outlive its reason."""
    heard: list[str] = []

    def answer(wire: socket.socket, server: str) -> None:
        wire.settimeout(5)
        with suppress(OSError):
            while request := wire.recv(65_536).decode():
                if server == "other":
                    heard.append(request)
                    return
                number = request.split("CSeq: ")[1].split("\r\n")[0]
                status = "302 Moved"
                extra = f"Location: rtsp://127.0.0.1:{other.getsockname()[1]}/x"
                if challenged and "Authorization" not in request:
                    status, extra = "401 Unauthorized", 'WWW-Authenticate: Basic realm="x"'
                wire.sendall(f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n{extra}\r\n\r\n".encode())

    def serve(listener: socket.socket, server: str) -> None:
        with suppress(OSError):
            while True:
                wire, _ = listener.accept()
                answer(wire, server)
                wire.close()

    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as named,
    ):
        for listener, server in ((other, "other"), (named, "named")):
            threading.Thread(target=serve, args=(listener, server), daemon=True).start()
        url = f"127.0.0.1:{named.getsockname()[1]}/x"
        with pytest.raises(SourceError, match=r"leads to .*, which does not get its password"):
            open_source(f"rtsp://user:secret@{url}")
        assert heard == []
        with pytest.raises(SourceError) as caught:
            open_source(f"rtsp://{url}")
        assert "leads to" not in str(caught.value)
        assert challenged or heard
        for listener in (other, named):
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["stdin", "fd", "self", "pid", "link", "file"])
def test_a_name_of_an_open_file_means_the_one_of_this_process(tmp_path, kind) -> None:
    """As a shell makes for `<(cat clip.ts)`. The child is a pipe; `file` is a regular file."""
    videos.write_video(tmp_path / "clip.ts", 20)
    code = """
import os, sys
from vicort.runtime.sources import open_source
name = sys.argv[1].replace("PID", str(os.getpid()))
with open_source(name) as source:
    print(source.name == name, len(list(source)))
"""
    (tmp_path / "link").symlink_to("/dev/fd/0")
    name = {
        "stdin": "/dev/stdin",
        "self": "/proc/self/fd/0",
        "pid": "/proc/PID/fd/0",
        "link": str(tmp_path / "link"),
    }.get(kind, "/dev/fd/9")
    given = 0 if name[-1] != "9" else 9
    command = ["bash", "-c", f'exec "$@" {given}< <(cat clip.ts)', "-", sys.executable, "-c", code]
    if kind == "file":
        command[2] = '"$@" 9< clip.ts'
    found = subprocess.run(
        [*command, name], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["True", "20"]


def test_an_open_file_that_is_no_video_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(SourceError, match="no such file /dev/fd/999: give"):
        open_source("/dev/fd/999")
    here, there = socket.socketpair()
    with here, there, pytest.raises(SourceError, match="is a socket, which is not read: give"):
        open_source(f"/dev/fd/{here.fileno()}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(SourceError, match="socket is a socket, which is not read"):
            open_source(str(tmp_path / "socket"))
    folder = os.open(tmp_path, os.O_RDONLY)
    videos.write_image(tmp_path / "1.png", videos.image(1))
    try:
        with open_source(f"/dev/fd/{folder}") as source:
            assert [videos.number(frame.image) for frame in source] == [1]
    finally:
        os.close(folder)


def test_a_block_device_is_refused(tmp_path, monkeypatch) -> None:
    videos.write_video(tmp_path / "clip.ts", 2)
    monkeypatch.setattr(Path, "is_block_device", lambda path: True)
    with pytest.raises(SourceError, match=r"clip\.ts is a block device, which is not read: give"):
        open_source(str(tmp_path / "clip.ts"), isolate=False)


def test_a_source_that_cannot_be_passed_on_harms_no_other() -> None:
    with open_source(str(CLIP)) as source:
        frames = iter(source)
        next(frames)
        with pytest.raises(SourceError, match="cannot be started"):
            decoder_host.HOST.open({}, [1_000_000])
        assert len(list(frames)) > 70


def test_a_server_that_can_fork_no_more_says_so_and_goes_on(monkeypatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    here, there = Link.pair()
    with there:
        assert decoder_server._forked(Link(there)) is None
        (kind, _, line, _), _ = here.receive()
    here.close()
    assert (kind, "no process can be started" in line) == ("failed", True)
