"""MJPEG answers that end: whole pictures are not called damaged, and cut ones are."""

import pytest
from support import videos
from support.recording_servers import Recorder, Reply
from support.servers import BOUNDARY, jpeg

from vicort.runtime.errors import TruncatedSource
from vicort.runtime.sources import open_source
from vicort.runtime.sources.live import Patience

ONCE = Patience(open_timeout=4, read_timeout=3, attempts=0)
KIND = "multipart/x-mixed-replace; boundary=frame"
COUNT = 4
BODY = b"".join(BOUNDARY + jpeg(i) + b"\r\n" for i in range(COUNT))


def with_lengths() -> bytes:
    heads = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return b"".join(heads % len(jpeg(i)) + jpeg(i) + b"\r\n" for i in range(COUNT))


@pytest.mark.parametrize(
    ("body", "damaged"),
    [
        (BODY, False),
        (BODY.rstrip(b"\r\n"), False),
        (BODY + b"--frame--\r\n", False),
        (with_lengths(), False),
        (with_lengths() + b"--frame--\r\n", False),
        (BODY[:-200], True),
    ],
    ids=["lines", "no-last-line", "closed", "lengths", "lengths-closed", "cut"],
)
def test_only_a_cut_picture_is_damaged(body: bytes, damaged: bool) -> None:
    server = Recorder({"/a": Reply(body, KIND)}, wants_password=False)
    said: list[str] = []
    frames: list[int] = []
    try:
        with (
            open_source(server.url("/a"), live=True, patience=ONCE, warn=said.append) as source,
            pytest.raises(TruncatedSource),  # it does not reconnect
        ):
            frames.extend(videos.number(frame.image) for frame in source)
    finally:
        server.kill()
    assert frames[: COUNT - 1] == list(range(COUNT - 1))
    assert damaged or len(frames) == COUNT
    assert any("damaged" in line for line in said) == damaged
