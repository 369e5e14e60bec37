"""Credentials are shown nowhere."""

from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.redact import redact, redact_url

SIGNS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Z"))
SECRET = "Zz" + "9geheim"  # in none of the other parts, whatever is drawn
SCHEMES = st.sampled_from(["rtsp:", "rtsps:", "http:", "https:", "gopher:"])
USERS = st.text(SIGNS.filter(lambda sign: sign != "/"))


@given(
    before=st.text(SIGNS),
    after=st.text(SIGNS),
    user=USERS,
    scheme=SCHEMES,
    slashes=st.sampled_from(["/", "//", "///"]),
)
def test_no_password_is_shown_whatever_signs_it_has(before, after, user, scheme, slashes):
    url = f"{scheme}{slashes}{user}:{before}{SECRET}{after}@host:554/cam/1"
    assert redact_url(url) == scheme + slashes + ("…" if "?" in url else "host:554/cam/1")
    assert SECRET not in redact(f"cannot open {url}: nobody there, nor at {url}")


@given(key=st.text(SIGNS), value=st.text(SIGNS))
def test_no_value_of_a_query_is_shown(key, value):
    url = f"http://host/video.mjpg?a=1&{key}={value}{SECRET}{value}"
    assert redact_url(url) == ("http://…" if "@" in url else "http://host/video.mjpg?…")
    assert SECRET not in redact_url(url)
    assert SECRET not in redact(f"{url} is gone")


@given(st.text(SIGNS.filter(lambda sign: sign not in "@?")))
def test_what_holds_no_secret_stays_as_it_is(path):
    assert redact_url(f"http://host/{path}") == f"http://host/{path}"
    assert redact(f"no such file {path}: give another") == f"no such file {path}: give another"


@given(st.text(), st.text())
def test_redacting_twice_is_redacting_once(text, url):
    assert redact(redact(text)) == redact(text)
    assert redact_url(redact_url(url)) == redact_url(url)
