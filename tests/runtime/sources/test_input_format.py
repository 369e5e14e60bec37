"""Formats that are named, for bytes that do not say what they are."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support import videos
from support.servers import jpeg

from vicort.runtime.cli.run import main
from vicort.runtime.errors import ConfigError, SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.live import Patience

PICTURES = 6
PART = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
ONCE = Patience(open_timeout=3, read_timeout=3, attempts=0)


def multipart(before: bytes) -> list[bytes]:
    """What a camera sends, with other bytes before its first picture."""
    pictures = [jpeg(i) for i in range(PICTURES)]
    parts = [PART % len(picture) + picture + b"\r\n" for picture in pictures]
    return [before + parts[0], *(b"--frame\r\n" + part for part in parts[1:])]


@contextmanager
def sending(kind: str, pieces: list[bytes]) -> Iterator[str]:
    """A server that sends these bytes once for each request, as this kind of content."""

    class Sends(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(sum(map(len, pieces))))
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.01)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sends)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://admin:geheim@127.0.0.1:{server.server_port}/video"
    finally:
        server.shutdown()
        server.server_close()


def seen(spec: str, **options: Any) -> list[int]:
    with open_source(spec, live=False, patience=ONCE, **options) as source:
        return [videos.number(frame.image) for frame in source]


@pytest.mark.parametrize(("format", "isolate"), [(None, False), ("mjpeg", True)])
@pytest.mark.parametrize(
    ("kind", "before"),
    [
        ("multipart/x-mixed-replace; boundary=frame", b""),
        ("multipart/x-mixed-replace; boundary=frame", b"\r\n--frame\r\n"),
        ("multipart/x-mixed-replace; boundary=other", b"--frame\r\n"),
        ("multipart/x-mixed-replace; boundary=other", b""),
        ("multipart/x-mixed-replace", b"--frame\r\n"),
        ("multipart/x-mixed-replace", b""),
        ("application/octet-stream", b""),
    ],
)
def test_pictures_of_a_camera_are_read_whatever_stands_between_them(kind, before, format, isolate):
    with sending(kind, multipart(before)) as url:
        assert seen(url, input_format=format, isolate=isolate) == list(range(PICTURES))


def test_pictures_without_anything_between_them_are_read() -> None:
    with sending("video/x-motion-jpeg", [jpeg(i) for i in range(PICTURES)]) as url:
        assert seen(url) == list(range(PICTURES))


def test_a_page_of_text_is_refused_with_advice_and_without_its_password() -> None:
    page = [b"<html><body>login</body></html>" * 50]
    with sending("text/html", page) as url, pytest.raises(SourceError) as caught:
        seen(url)
    assert "--input-format mjpeg" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_url_without_pictures_in_the_format_that_is_named_is_not_asked_again() -> None:
    page = [b"<html><body>login</body></html>" * 50]
    with sending("text/html", page) as url:
        for live in (None, True):
            with pytest.raises(SourceError, match="no picture in the format mjpeg"):
                open_source(url, live=live, patience=ONCE, input_format="mjpeg")


def test_a_file_whose_start_says_nothing_is_read_as_the_format_that_is_named(tmp_path) -> None:
    content = io.BytesIO()
    videos.write_video(content, PICTURES, container="h264")
    for name in ("a.bin", "a.jpg", "a[1].webp"):  # named as a still picture, it is none
        (tmp_path / name).write_bytes(content.getvalue())
        assert seen(str(tmp_path / name), input_format="h264") == list(range(PICTURES))
    with pytest.raises(SourceError):
        seen(str(tmp_path / "a.bin"), input_format="mov")


def test_stdin_is_read_as_the_format_that_is_named() -> None:
    code = (
        "from vicort.runtime.sources import open_source; "
        "print(len(list(open_source('-', input_format='mjpeg'))))"
    )
    content = b"".join(multipart(b""))
    done = subprocess.run(
        [sys.executable, "-c", code], input=content, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.decode().strip()) == (0, str(PICTURES)), done.stderr


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("nosuch\n", "ffmpeg -demuxers"),
        ("", "ffmpeg -demuxers"),
        ("mp3x", "ffmpeg -demuxers"),
        ("null", "ffmpeg -demuxers"),  # it only writes
        ("rawvideo", "yuv4mpegpipe"),
        ("v4l2", "name the source itself"),
        ("lavfi", "name the source itself"),
        ("image2", "name the source itself"),
    ],
)
def test_formats_that_cannot_be_read_are_refused_before_anything_is_opened(name, advice, capsys):
    assert main(["/missing.mp4", "--input-format", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert advice in line
    assert "missing" not in line


@pytest.mark.parametrize("spec", ["testsrc:", "rtsp://127.0.0.1:9/1", "/dev/video99", "*.jpg"])
def test_sources_that_are_not_bytes_of_one_format_take_none(spec) -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        open_source(spec, input_format="mjpeg")


def test_folders_and_lists_of_images_take_no_format(tmp_path: Path) -> None:
    for spec in (str(tmp_path), ["a.png", "b.png"]):
        with pytest.raises(ConfigError, match="leave it out"):
            open_source(spec, input_format="png_pipe")
