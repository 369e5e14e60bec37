"""Servers that send one thing without an end: the source ends within the limits."""

import socket
import threading
import time
from contextlib import suppress

import pytest
from support.sizes import slow

from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.live import Patience

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: %s\r\n\r\n"
PART = HEAD % b"multipart/x-mixed-replace;boundary=b" + b"--b\r\nContent-Type: image/jpeg\r\n\r\n"
PLAYLIST = HEAD % b"application/vnd.apple.mpegurl" + b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
BODY = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 2000000000\r\n\r\n"
# scheme, what comes first, and what comes again and again
ANSWERS = {
    "headers": ("http", b"HTTP/1.0 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n"),
    "playlist": ("http", PLAYLIST, b"#EXTINF:1,\ns.ts\n" * 4096),
    "mjpeg part": ("http", PART, bytes(1 << 16)),
    "h264": ("http", HEAD % b"video/h264" + b"\0\0\0\1\x65", b"x" * (1 << 16)),
    "rtsp body": ("rtsp", BODY, b"x" * (1 << 16)),
}


@pytest.mark.parametrize("kind", ["headers", "rtsp body", *slow("playlist", "mjpeg part", "h264")])
def test_an_answer_without_an_end_is_left(kind) -> None:
    scheme, first, again = ANSWERS[kind]

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(65536)
            client.sendall(first)
            while True:
                client.sendall(again)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x"
        patience, limits = Patience(1.0, 1.0), Limits(seconds=3.0, memory=400 << 20)
        began = time.monotonic()
        with (
            pytest.raises(SourceError, match=r"cannot be|can be decoded"),
            open_source(url, live=False, patience=patience, limits=limits) as source,
        ):
            list(source)
        assert time.monotonic() - began < 20
        server.shutdown(socket.SHUT_RDWR)
