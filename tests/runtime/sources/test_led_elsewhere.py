"""A password goes to the host and port that its URL names, and to no other, wherever that server
leads."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from support import videos
from support.recording_servers import BASIC, Recorder, Reply
from support.servers import BOUNDARY, jpeg

from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.live import Patience

ONCE = Patience(open_timeout=5, read_timeout=3, attempts=0)
HOSTS = ("127.0.0.1", "127.0.0.2")  # another port, another host
MULTIPART = "multipart/x-mixed-replace; boundary=frame"
OPENSSL = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
PLAYLIST = "application/vnd.apple.mpegurl"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "a.ts"
    videos.write_video(path, 25)
    return path.read_bytes()


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(servers: ExitStack, **options: object) -> Recorder:
    recorder = Recorder(**options)
    servers.callback(recorder.kill)
    return recorder


def look(url: str, **options: object) -> int:
    """How many frames come."""
    try:
        with open_source(url, patience=ONCE, **options) as source:
            return len(list(islice(source, 5)))
    except SourceError:
        return 0


def content(kind: str, clip: bytes) -> Reply:
    if kind == "video":
        return Reply(clip, "video/mp2t")
    if kind == "picture":
        return Reply(jpeg(1), "image/jpeg")
    return Reply(b"".join(BOUNDARY + jpeg(i) + b"\r\n" for i in range(5)), MULTIPART)


@pytest.mark.parametrize(
    ("kind", "host", "code", "asks"),
    [
        *(("video", HOSTS[code % 2], code, False) for code in (301, 302, 303, 307, 308)),
        *((kind, host, 302, False) for kind in ("picture", "pictures") for host in HOSTS),
        *(("video", host, 302, True) for host in HOSTS),  # the other server wants one, too
    ],
)
def test_a_redirect_takes_no_password_along(
    servers: ExitStack, clip: bytes, kind: str, host: str, code: int, asks: bool
) -> None:
    other = started(servers, replies={"/a": content(kind, clip)}, host=host, wants_password=asks)
    named = started(servers, replies={"/a": Reply(leads_to=other.url("/a"), code=code)})
    frames = look(named.url("/a", password=True))
    assert named.sent("Authorization") == [BASIC]
    assert other.asked, "the redirect was followed"
    assert other.sent("Authorization") == []
    assert bool(frames) == (not asks)


def test_within_its_own_server_the_password_goes_along(servers: ExitStack, clip: bytes) -> None:
    replies = {"/a": Reply(leads_to="/b", code=302), "/b": content("video", clip)}
    named = started(servers, replies=replies)
    assert look(named.url("/a", password=True)) == 5


@pytest.mark.parametrize("host", HOSTS)
def test_no_password_goes_from_tls_to_plain_text(
    servers: ExitStack, clip: bytes, host: str, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subprocess.run(
        [*OPENSSL, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    other = started(servers, replies={"/a": content("video", clip)}, host=host)
    lead = {"/a": Reply(leads_to=other.url("/a"), code=302)}
    named = started(servers, replies=lead, tls=context)
    look(named.url("/a", password=True))
    assert named.sent("Authorization") == [BASIC]
    assert other.asked
    assert other.sent("Authorization") == []


def playlist(*lines: str) -> Reply:
    text = "\n".join(["#EXTM3U", "#EXT-X-TARGETDURATION:1", *lines, "#EXT-X-ENDLIST", ""])
    return Reply(text.encode(), PLAYLIST)


def variants(*urls: str) -> Reply:
    lines = [f"#EXT-X-STREAM-INF:BANDWIDTH=100000,RESOLUTION=160x120\n{url}" for url in urls]
    return Reply("\n".join(["#EXTM3U", *lines, ""]).encode(), PLAYLIST)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("place", ["segment", "variant", "key", "redirect"])
def test_hls_takes_no_password_to_another_server(
    servers: ExitStack, clip: bytes, host: str, place: str
) -> None:
    other = started(servers, host=host, wants_password=False)
    named = started(servers)
    segment = Reply(clip, "video/mp2t")
    other.replies = {
        "/s.ts": segment,
        "/v.m3u8": playlist("#EXTINF:1,", "s.ts"),
        "/k": Reply(bytes(16)),
    }
    own = {"/s.ts": segment, "/r.ts": Reply(leads_to=other.url("/s.ts"), code=302)}
    named.replies = own | {
        "/a.m3u8": {
            "segment": playlist("#EXTINF:1,", "s.ts", "#EXTINF:1,", other.url("/s.ts")),
            "variant": variants(other.url("/v.m3u8")),
            "key": playlist(
                f'#EXT-X-KEY:METHOD=AES-128,URI="{other.url("/k")}"', "#EXTINF:1,", "s.ts"
            ),
            "redirect": playlist("#EXTINF:1,", "r.ts"),
        }[place]
    }
    with (
        suppress(SourceError),
        open_source(named.url("/a.m3u8", password=True), patience=ONCE) as source,
    ):
        list(source)
    assert set(named.sent("Authorization")) == {BASIC}
    assert other.asked
    assert other.sent("Authorization") == []


@pytest.mark.parametrize("domain", ["; Domain=127.0.0.1", ""])
@pytest.mark.parametrize("leads", ["redirect", "segment"])
def test_cookies_go_to_the_domain_that_they_name_or_everywhere(
    servers: ExitStack, clip: bytes, domain: str, leads: str
) -> None:
    other = started(
        servers, replies={"/a.ts": content("video", clip)}, host="127.0.0.2", wants_password=False
    )
    reply = (
        Reply(leads_to=other.url("/a.ts"), code=302)
        if leads == "redirect"
        else playlist("#EXTINF:1,", other.url("/a.ts"))
    )
    named = started(servers, replies={"/a.m3u8": replace(reply, cookie=f"a=1{domain}")})
    assert look(named.url("/a.m3u8", password=True)) == 5
    assert set(other.sent("Cookie")) == (set() if domain else {"a=1"})


def test_watched_snapshots_take_no_password_along(servers: ExitStack, clip: bytes) -> None:
    other = started(
        servers, replies={"/a": content("picture", clip)}, host="127.0.0.2", wants_password=False
    )
    named = started(servers, replies={"/a": Reply(leads_to=other.url("/a"), code=302)})
    assert look(named.url("/a", password=True), live=True, image_fps=20) == 5
    assert len(other.asked) >= 5
    assert other.sent("Authorization") == []
