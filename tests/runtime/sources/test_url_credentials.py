"""Passwords in URLs: what cannot be taken apart is refused in one line, which shows no password."""

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.cli import run
from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source
from vicort.runtime.sources.live import Patience
from vicort.runtime.sources.url_credentials import check_credentials, credentials_advice

SECRET = "Zz" + "9geheim"
SIGNS = st.characters(codec="utf-8", exclude_categories=("Cs",))
IMPATIENT = Patience(open_timeout=1, attempts=0)


@pytest.mark.parametrize("scheme", ["rtsp", "RTSP", "http"])
@pytest.mark.parametrize("sign", "[]#/?@:%： \u2028é\t\n")
def test_a_sign_in_a_password_is_one_line_with_advice(sign, scheme):
    with pytest.raises(SourceError, match="percent-encode") as got:
        open_source(f"{scheme}://admin:x{SECRET}{sign}{SECRET}@127.0.0.1:9/1", patience=IMPATIENT)
    assert str(got.value).isprintable()
    assert SECRET not in f"{got.value} {got.value.brief}"
    assert got.value.__cause__ is None
    assert got.value.__context__ is None


@given(user=st.text(SIGNS), password=st.text(SIGNS))
def test_a_percent_encoded_password_is_taken_whatever_it_is(user, password):
    url = f"rtsp://{quote(user, '')}:{quote(password, '')}@camera:554/live/@1?a=b@c"
    check_credentials(url, "camera")
    assert credentials_advice(url) == ""


@given(st.text(SIGNS))
def test_any_url_is_taken_or_refused_in_one_line(rest):
    with suppress(SourceError):
        check_credentials(f"http://{rest}", "camera")
    credentials_advice(f"http://{rest}")
    Patience().timeouts(f"http://{rest}")


@pytest.mark.parametrize(
    "url",
    [
        "https://host/@channel/live.m3u8",
        "https://host:8443/live?mail=a@b",
        "rtsp://[::1]:8554/live/@1",
        "http://host/a b.mp4",
    ],
)
def test_an_at_sign_behind_the_host_is_no_password(url):
    check_credentials(url, "camera")


@pytest.mark.parametrize("sign", "[/：")
def test_one_bad_url_does_not_end_other_sources(sign, tiny_engines, capsys):
    bad = f"rtsp://admin:x{SECRET}{sign}{SECRET}@127.0.0.1:9/1"
    options = ["--engine-dir", str(tiny_engines), "--open-timeout", "1", "--reconnect", "0"]
    code = run.main([bad, "testsrc:seconds=2", "--ask", "@1 what is there now?", *options])
    out, err = capsys.readouterr()
    assert code != 0
    assert "what is there now?" in out
    assert SECRET not in out + err
    assert "Traceback" not in err
    assert "percent-encode" in err
