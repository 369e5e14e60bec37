"""Cameras on loopback that misbehave on demand: MJPEG over HTTP, and HLS, from the standard
library."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
from support import videos

BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"


def jpeg(number: int, size: tuple[int, int] = (160, 120)) -> bytes:
    """A JPEG file that shows a number."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
        *size,
        "yuvj420p",
        Fraction(1, 25),
    )
    picture = av.VideoFrame.from_ndarray(videos.image(number, *size), format="rgb24").reformat(
        format="yuvj420p"
    )
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


class Camera:
    """MJPEG over HTTP: the pictures 0, 1, 2, … (mod 256), counted over all connections."""

    def __init__(
        self, fps: float = 25.0, size: tuple[int, int] = (160, 120), port: int = 0
    ) -> None:
        self.fps = fps
        self.sent = 0
        self.requests = 0
        # before each picture: False ends the connection
        self.act: Callable[[Any, int], bool] = lambda stream, count: True
        self._pictures = [jpeg(i, size) for i in range(8)]
        self._instead: bytes | None = None
        self._server = _Server(("127.0.0.1", port), self._handler())
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://admin:geheim@127.0.0.1:{self.port}/video.mjpg"

    def resize(self, size: tuple[int, int]) -> None:
        self._pictures = [jpeg(i, size) for i in range(8)]

    def send_instead(self, content: bytes | None) -> None:
        """In the place of every picture; None = pictures again."""
        self._instead = content

    def kill(self) -> None:
        """As if its plug were pulled, but for the port, which refuses."""
        self._server.dead = True
        self._server.shutdown()
        self._server.server_close()

    def _handler(camera) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.requests += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                count = 0
                while not camera._server.dead and camera.act(self.wfile, count):
                    picture = camera._instead or camera._pictures[camera.sent % 8]
                    self.wfile.write(BOUNDARY + picture + b"\r\n")
                    camera.sent, count = camera.sent + 1, count + 1
                    time.sleep(1 / camera.fps)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    dead = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the other side has gone: that is what these tests are about


class Playlist:
    """A live HLS playlist over segments of MPEG-TS, each `seconds` long: a new one comes as each is
    over."""

    def __init__(self, folder: Path, seconds: float = 0.5, window: int = 3) -> None:
        self.seconds = seconds
        self.window = window
        self.over = False
        self.broken = False
        self._segments = _segments(folder, seconds)
        self._began = time.monotonic()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://admin:geheim@127.0.0.1:{self._server.server_address[1]}/live.m3u8"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def text(self) -> str:
        newest = min(
            self.window + int((time.monotonic() - self._began) / self.seconds), len(self._segments)
        )
        first = 0 if self.over else max(0, newest - self.window)
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:3",
            "#EXT-X-TARGETDURATION:1",
            f"#EXT-X-MEDIA-SEQUENCE:{first}",
        ]
        for number in range(first, newest):
            lines += [f"#EXTINF:{self.seconds:.3f},", f"s{number}.ts"]
        return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if self.over else []), ""])

    def _handler(playlist) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if playlist.broken:
                    self.send_error(503)
                    return
                name = self.path.rpartition("/")[2]
                body = (
                    playlist.text().encode()
                    if name == "live.m3u8"
                    else playlist._segments[int(name[1:-3])]
                )
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _segments(folder: Path, seconds: float, count: int = 40) -> list[bytes]:
    """One stream cut into MPEG-TS segments by FFmpeg itself."""
    frames = round(25 * seconds)
    with av.open(
        str(folder / "all.m3u8"),
        "w",
        format="hls",
        options={
            "hls_time": str(seconds),
            "hls_list_size": "0",
            "hls_flags": "independent_segments",
        },
    ) as output:
        track = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
        track.width, track.height, track.pix_fmt, track.gop_size = 160, 120, "yuv420p", frames
        for i in range(frames * count):
            picture = av.VideoFrame.from_ndarray(videos.image(i % 256), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            output.mux(track.encode(picture))
        output.mux(track.encode())
    return [
        (folder / f"all{number}.ts").read_bytes()
        for number in range(len(list(folder.glob("all*.ts"))))
    ]


@contextmanager
def running(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.kill()
