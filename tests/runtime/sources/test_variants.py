"""Which variant of an HLS stream is read, and what is fetched of the others."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest
from support import videos

from vicort.runtime.sources import open_source

SIZES = {"low": (160, 120), "middle": (480, 270), "high": (1300, 720)}
SECONDS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    for name, size in SIZES.items():
        write_variant(folder, name, size)
    return folder


def write_variant(folder: Path, name: str, size: tuple[int, int]) -> None:
    videos.write_video(
        folder / f"{name}.m3u8",
        25 * SECONDS,
        size=size,
        container="hls",
        options={"hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "vod"},
        encoder={"preset": "ultrafast"},
    )


def write_master(folder: Path, names: list[str]) -> str:
    lines = ["#EXTM3U"]
    for bandwidth, name in enumerate(names, 1):
        width, height = SIZES[name]
        lines += [
            f"#EXT-X-STREAM-INF:BANDWIDTH={bandwidth}00000,RESOLUTION={width}x{height}",
            f"{name}.m3u8",
        ]
    master = "-".join(["master", *names]) + ".m3u8"
    (folder / master).write_text("\n".join([*lines, ""]))
    return master


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server on loopback, and the names that it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path.rpartition("/")[2])
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["low", "middle", "high"], "middle"),
        (["high", "middle"], "middle"),
        (["high", "low"], "low"),
        (["high"], "high"),
    ],
    ids=str,
)
def test_the_largest_variant_that_is_no_larger_than_needed(
    names: list[str], right: str, folder: Path
) -> None:
    master = write_master(folder, names)
    with serving(folder) as (address, asked), open_source(f"{address}/{master}") as source:
        found = [frame.image.shape[:2] for frame in source.frames(lambda at: at % 1 == 0)]
    width, height = SIZES[right]
    assert found == [(height, width)] * SECONDS
    segments = {
        name: [each for each in asked if each.startswith(name) and each.endswith("ts")]
        for name in SIZES
    }
    assert set(segments[right]) == {each.name for each in folder.glob(f"{right}*.ts")}
    assert len(set(segments[right])) >= 3
    # to learn what the others are, FFmpeg reads how they begin
    assert all(len(set(segments[name])) <= 2 for name in SIZES if name != right)


def test_a_variant_may_be_named(folder: Path) -> None:
    path = folder / write_master(folder, ["low", "middle"])
    with av.open(str(path)) as container:
        index = next(each.index for each in container.streams.video if each.width == 160)
    with open_source(str(path), stream=index) as source:
        assert next(iter(source)).image.shape == (120, 160, 3)
