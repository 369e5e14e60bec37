"""The server of decoder processes and the links to them: what goes wrong with one source is said
there and harms no other."""

import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import videos

from vicort.runtime.errors import SourceError
from vicort.runtime.sources import decoder_host, decoder_worker, isolated, open_source
from vicort.runtime.sources.decoder_link import MAX_MESSAGE, Link, LinkClosed

CLIP = Path(__file__).parents[2] / "fixtures" / "shapes.mp4"


class OwnServer(decoder_host.DecoderHost):
    """A server of its own, whose process id is known."""

    def __init__(self) -> None:
        super().__init__(self._start)
        self.pid = 0

    def _start(self, command, environment, files):
        child = subprocess.Popen(command, env=environment, pass_fds=files, stdin=subprocess.DEVNULL)
        self.pid = child.pid
        return child.wait

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(each) for each in children.split()]


@pytest.fixture
def server(monkeypatch) -> Iterator[OwnServer]:
    host = OwnServer()
    monkeypatch.setattr(isolated, "HOST", host)
    yield host
    host.close()


def open_files(process: int) -> list[str]:
    folder = Path(f"/proc/{process}/fd")
    return [os.readlink(each) for each in folder.iterdir()]


def test_a_server_that_may_open_no_more_files_says_so_and_harms_no_source(server) -> None:
    with open_source(str(CLIP)) as first:
        frames = iter(first)
        next(frames)
        before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        taken = {int(each.name) for each in Path(f"/proc/{server.pid}/fd").iterdir()}
        free = [each for each in range(100) if each not in taken]
        for room, words in (
            (1, "may not open more files: raise the limit, `ulimit -n`"),  # for the link alone
            (0, "something ended the decoder process"),
        ):
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (free[room], before[1]))
            with pytest.raises(SourceError) as caught:
                open_source(str(CLIP))
            assert words in str(caught.value)
            assert "\n" not in str(caught.value)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        with open_source(str(CLIP)) as second:
            assert next(iter(second)).index == 0
        assert len(list(frames)) > 100


def test_a_decoder_process_has_no_link_of_another(server) -> None:
    with open_source(str(CLIP)) as first, open_source(str(CLIP)) as second:
        next(iter(first)), next(iter(second))
        sockets = [
            {name for name in open_files(worker) if name.startswith("socket:")}
            for worker in server.workers()
        ]
    assert [len(each) for each in sockets] == [1, 1]
    assert not sockets[0] & sockets[1]


def test_a_default_time_out_for_sockets_is_not_one_for_decoding(server, tmp_path) -> None:
    """As a program may set for its own connections."""
    os.mkfifo(tmp_path / "fifo")
    videos.write_video(tmp_path / "a.ts", 20)
    content = (tmp_path / "a.ts").read_bytes()

    def write_slowly() -> None:
        with open(tmp_path / "fifo", "wb", buffering=0) as pipe:
            for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                time.sleep(0.3)
                pipe.write(part)

    socket.setdefaulttimeout(0.01)
    try:
        threading.Thread(target=write_slowly, daemon=True).start()
        with open_source(str(tmp_path / "fifo"), stream=0) as source:
            assert len(list(source)) == 20
    finally:
        socket.setdefaulttimeout(None)


def test_why_a_link_broke_is_in_the_error(server, monkeypatch) -> None:
    with open_source(str(CLIP)) as source:
        frames = iter(source)
        next(frames)
        monkeypatch.setattr(
            isolated.FrameRing, "read", lambda *values: (_ for _ in ()).throw(ValueError("slot 9"))
        )
        with pytest.raises(SourceError, match=r"the link to the decoder process broke \(slot 9\)"):
            list(frames)


def test_a_source_whose_server_was_ended_says_so(server) -> None:
    with open_source(str(CLIP)) as source:
        frames = iter(source)
        next(frames)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match="something ended the decoder process and the server"):
            list(frames)


def test_a_worker_whose_message_cannot_be_sent_says_why(monkeypatch) -> None:
    here, there = Link.pair()

    class Broken:
        def __init__(self, link, request) -> None: ...

        def run(self, files) -> None:
            raise LinkClosed("Message too long")

    monkeypatch.setattr(decoder_worker, "_Worker", Broken)
    decoder_worker.work(Link(there), {}, [])
    message, _ = here.receive()
    assert message[:2] == ["failed", "other"]
    assert "Message too long" in message[2]
    here.close()
    there.close()


def test_a_message_that_is_too_long_is_no_end() -> None:
    here, there = Link.pair()
    there.send(b"[" + b" " * MAX_MESSAGE + b"]")
    with pytest.raises(LinkClosed, match=f"more than {MAX_MESSAGE} bytes"):
        here.receive()
    there.close()
    with pytest.raises(LinkClosed, match="it has ended"):
        here.receive()
    here.close()
