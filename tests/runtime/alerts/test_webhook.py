"""Webhooks, against an HTTP server that fails, stalls and restarts."""

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import pytest
from support.alert_messages import SOON, TARGETS, Said, count, delivering, message
from support.receivers import HookServer, Reaction, until
from support.sizes import slow

from vicort.runtime.alerts import seldom
from vicort.runtime.alerts.back_off import BackOff
from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.signature import signature, signing_key
from vicort.runtime.alerts.webhook import WebhookChannel, retry_after
from vicort.runtime.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "delivery.md"
PICTURE = bytes(range(256)) * 4


@contextmanager
def server(react=lambda number: Reaction(), **options):
    running = HookServer(react, **options)
    try:
        yield running
    finally:
        running.stop()


def hook(running, path="/hook", **keys):
    return {"webhook": running.url(path), "allow_private": True, "timeout": "5s", **keys}


def answers(*codes):
    """These, then 204."""
    return lambda number: Reaction(codes[number] if number < len(codes) else 204)


def test_the_request_is_the_event_and_is_signed(folder):
    with (
        server() as running,
        delivering(
            folder,
            hook(running, secret_env="SECRET", headers_env={"Authorization": "TOKEN"}),
            environment={"SECRET": "geheim", "TOKEN": "Bearer abc"},
        ) as delivery,
    ):
        delivery.send(message(7, PICTURE, probability=0.9, text="ä"))
        until(lambda: count(delivery, "delivered"))
    (request,) = running.asked
    headers = request.headers
    assert request.path == "/hook"
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{running.port}"
    assert headers["authorization"] == "Bearer abc"
    assert headers["idempotency-key"] == headers["webhook-id"] == "key-7"
    assert json.loads(request.body) == {
        "key": "key-7",
        "alert": "parcel",
        "stream": "front",
        "state": "fired",
        "n": 7,
        "probability": 0.9,
        "text": "ä",
        "picture_base64": base64.b64encode(PICTURE).decode(),
    }
    # Standard Webhooks, in a few lines of its own
    stamp = headers["webhook-timestamp"]
    signed = b".".join([b"key-7", stamp.encode(), request.body])
    digest = hmac.digest(b"geheim", signed, hashlib.sha256)
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert abs(time.time() - int(stamp)) < 100
    # and as the page says
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code, scope := {})
    assert scope["is_genuine"](headers, request.body, "geheim")
    assert not scope["is_genuine"](headers, request.body + b" ", "geheim")
    assert not scope["is_genuine"](headers | {"webhook-timestamp": "1"}, request.body, "geheim")


def test_the_example_of_the_specification_is_signed_as_there():
    """https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


def test_without_a_secret_and_with_no_picture_wanted(folder):
    with (
        server() as running,
        delivering(folder, hook(running, picture="none")) as delivery,
    ):
        delivery.send(message(1, PICTURE))
        until(lambda: count(delivery, "delivered"))
    (request,) = running.asked
    assert "webhook-signature" not in request.headers
    assert "picture_base64" not in json.loads(request.body)


@pytest.mark.parametrize("code", [404, 503, *slow(401, 403, 405, 408, 409, 425, 429, 500)])
def test_it_is_sent_again_until_it_arrives_and_what_follows_waits(folder, code):
    with (
        server(answers(*[code] * 8)) as running,
        delivering(folder, hook(running), warn=(warn := Said())) as delivery,
    ):
        for number in range(3):
            delivery.send(message(number))
        until(lambda: count(delivery, "delivered") == 3)
        assert count(delivery, "failed_tries") == 8
        assert count(delivery, "last_error") == f"it answered {code}"
    assert running.sent_keys() == ["key-0"] * 9 + ["key-1", "key-2"]
    assert len({each.body for each in running.asked}) == 3
    assert [f"not reached (it answered {code})" in line for line in warn] == [True]


@pytest.mark.parametrize("code", [400, *slow(413, 415, 422)])
def test_what_is_refused_is_given_up_after_some_tries_and_keeps_nothing_back(folder, code):
    with (
        server(answers(*[code] * 12)) as running,
        delivering(folder, hook(running), warn=(warn := Said())) as delivery,
    ):
        for number in range(3):
            delivery.send(message(number))
        until(lambda: count(delivery, "delivered") == 1)
        assert (count(delivery, "refused"), count(delivery, "waiting")) == (2, 0)
    assert running.sent_keys() == ["key-0"] * 6 + ["key-1"] * 6 + ["key-2"]
    assert ["gave up 1 of the messages" in line for line in warn] == [True]


def test_what_is_refused_now_and_then_is_given_up_too(folder):
    """As by a receiver and a proxy that fails in between."""
    with (
        server(answers(*[400, 503] * 6)) as running,
        delivering(folder, hook(running)) as delivery,
    ):
        for number in range(2):
            delivery.send(message(number))
        until(lambda: count(delivery, "delivered") == 1)
        assert count(delivery, "refused") == 1
    assert running.sent_keys() == ["key-0"] * 11 + ["key-1"] * 2


def test_a_second_outage_is_said_as_soon_as_a_minute_is_over(folder, monkeypatch):
    monkeypatch.setattr(seldom, "EVERY", 0.4)
    codes = [503, 204, *[503] * 40]
    with (
        server(answers(*codes)) as running,
        delivering(folder, hook(running), warn=(warn := Said())) as delivery,
    ):
        for number in range(2):
            delivery.send(message(number))
        until(lambda: count(delivery, "delivered") == 2)
    assert ["not reached (it answered 503)" in line for line in warn] == [True, True]


def test_after_gone_it_is_given_up_at_once(folder):
    with server(answers(410)) as running, delivering(folder, hook(running)) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "refused"))
    assert running.sent_keys() == ["key-0"]


def test_redirects_are_not_followed_and_lead_to_no_secret(folder):
    elsewhere = Reaction(307, (("Location", "http://user:geheim@other.example/geheim?a=geheim"),))
    with (
        server(lambda number: elsewhere) as running,
        delivering(folder, hook(running), warn=(warn := Said())) as delivery,
    ):
        delivery.send(message(0))
        until(lambda: count(delivery, "failed_tries") > 8)
        assert (count(delivery, "waiting"), count(delivery, "refused")) == (1, 0)
    assert "it leads to other.example, and redirects are not followed" in warn[0]
    assert "geheim" not in warn[0]


def test_retry_after_is_obeyed(folder):
    with (
        server(
            lambda number: Reaction(503, (("Retry-After", "1"),)) if not number else Reaction()
        ) as running,
        delivering(folder, hook(running)) as delivery,
    ):
        began = time.monotonic()
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"))
        assert time.monotonic() - began >= 1
    assert len(running.asked) == 2


def test_the_forms_of_retry_after():
    now = 1_700_000_000
    assert retry_after("120", now) == 120
    assert retry_after(formatdate(now + 90, usegmt=True), now) == 90
    for text in ("", "soon", "-5", "1.5", formatdate(now - 90, usegmt=True), "²"):
        assert retry_after(text, now) == 0
    assert BackOff().seconds(1, retry_after("9" * 30, now)) == 3600


def test_tries_are_further_and_further_apart():
    for failed in range(1, 2000, 7):
        seconds = [BackOff(1, 60).seconds(failed) for _ in range(20)]
        longest = min(60, 2 ** (failed - 1))
        assert longest / 2 <= min(seconds) < max(seconds) <= longest


@pytest.mark.parametrize(
    "first",
    [Reaction(stall=30), Reaction(drip=0.2), Reaction(hangs_up=True)],
    ids=["stalls", "drips", "hangs up"],
)
def test_a_server_that_does_not_answer_is_tried_again(folder, first):
    """Bytes that come one at a time do not make a try longer."""
    with (
        server(lambda number: Reaction() if number else first) as running,
        delivering(folder, hook(running, timeout="300ms")) as delivery,
    ):
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"), 5)
        if not first.hangs_up:
            assert count(delivery, "last_error") == "no answer within 0.3 s"
    assert running.sent_keys() == ["key-0", "key-0"]


def test_a_server_that_is_away_at_the_start_and_restarts_gets_everything_in_order(folder):
    running = HookServer()
    running.stop()
    warn = Said()
    with delivering(folder, hook(running), warn=warn) as delivery:
        until(lambda: warn)
        assert "not reached (connection refused): messages are kept" in warn[0]
        for number in range(10):
            delivery.send(message(number))
        running.start()
        until(lambda: count(delivery, "delivered") >= 5)
        running.stop()
        for number in range(10, 20):
            delivery.send(message(number))
        time.sleep(0.1)
        running.start()
        until(lambda: count(delivery, "waiting") == 0)
        assert count(delivery, "delivered") == 20
    running.stop()
    first_times = list(dict.fromkeys(running.sent_keys()))
    assert first_times == [f"key-{number}" for number in range(20)]
    assert len([line for line in warn if "not reached" in line]) <= 2


def test_a_slow_receiver_slows_neither_the_sender_nor_another_target(folder):
    with (
        server(lambda number: Reaction(stall=60)) as stalled,
        server() as quick,
        delivering(folder, hook(stalled), hook(quick)) as delivery,
    ):
        until(lambda: [delivery.send(message(99)), stalled.asked][1])
        sent = count(delivery, "waiting")
        began = time.monotonic()
        for number in range(50):
            delivery.send(message(number))
        took = time.monotonic() - began
        until(lambda: count(delivery, "delivered", 1) == 50 + sent)
        assert count(delivery, "delivered", 0) == 0
        assert took < 5  # seconds for 50 writes; a try takes 5 s itself


def test_a_private_address_is_refused_when_it_is_connected_to(folder, monkeypatch):
    """Its name was public when the file was read. Nothing is lost: it is tried again."""
    host = {"address": "127.0.0.1"}

    def look_up(name, port, type):
        assert name == "hook.example"
        return [(socket.AF_INET, type, 6, "", (host["address"], port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with server() as running:
        target = {"webhook": f"http://hook.example:{running.port}/", "timeout": "1s"}
        with delivering(folder, target, warn=(warn := Said())) as delivery:
            delivery.send(message(0))
            until(lambda: count(delivery, "failed_tries") > 1)
            assert "hook.example has the private address 127.0.0.1" in warn[0]
            assert (count(delivery, "waiting"), count(delivery, "refused")) == (1, 0)
    assert running.asked == []


def test_the_connection_goes_to_the_address_that_was_checked(folder, monkeypatch):
    """A name server that gives another answer the second time (DNS rebinding) leads nowhere."""
    looked_up = []
    real = socket.getaddrinfo

    def look_up(name, port, *rest, **options):
        looked_up.append(name)
        if name == "hook.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        assert name == "127.0.0.1", "the name was looked up again"
        return real(name, port, *rest, **options)

    with server() as running:
        target = {"webhook": f"http://hook.example:{running.port}/", "allow_private": True}
        with delivering(folder, target, starts=False) as delivery:
            delivery.send(message(0))
            monkeypatch.setattr(socket, "getaddrinfo", look_up)
            delivery.start()
            until(lambda: count(delivery, "delivered"))
    assert looked_up.count("hook.example") == 2  # one to see whether it is there
    assert running.asked[0].headers["host"] == f"hook.example:{running.port}"


def test_the_next_address_is_tried_where_the_first_one_takes_no_connection(folder, monkeypatch):
    def look_up(name, port, *rest, **options):
        names = ("127.0.0.9", "127.0.0.1") if name == "hook.example" else (name,)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in names]

    with server() as running:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        target = {"webhook": f"http://hook.example:{running.port}/", "allow_private": True}
        with delivering(folder, target) as delivery:
            delivery.send(message(0))
            until(lambda: count(delivery, "delivered"))
            assert count(delivery, "failed_tries") == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, file = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = [
        "-subj",
        "/CN=hook.example",
        "-addext",
        "subjectAltName=DNS:hook.example,DNS:localhost",
    ]
    subprocess.run(
        [*command.split(), *subject, "-keyout", str(key), "-out", str(file)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return file, context


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_is_that_of_the_name_and_is_trusted(
    folder, monkeypatch, certificate, trusted
):
    file, context = certificate

    def look_up(name, port, *rest, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with server(tls=context) as running:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        target = {
            "webhook": f"https://hook.example:{running.port}/",
            "allow_private": True,
            **({"ca_file": str(file)} if trusted else {}),
        }
        with delivering(folder, target) as delivery:
            delivery.send(message(0))
            if trusted:
                until(lambda: count(delivery, "delivered"))
            else:
                until(lambda: count(delivery, "failed_tries"))
                assert "its certificate is not trusted" in count(delivery, "last_error")
    assert len(running.asked) == trusted


def test_bytes_one_at_a_time_do_not_make_a_try_with_tls_longer(folder, certificate):
    file, context = certificate
    with (
        server(
            lambda number: Reaction() if number else Reaction(drip=0.2),
            host="localhost",
            tls=context,
        ) as running,
        delivering(folder, hook(running, timeout="300ms", ca_file=str(file))) as delivery,
    ):
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"), 5)
        assert count(delivery, "last_error") == "no answer within 0.3 s"


def test_what_is_known_of_a_target_is_hidden_whoever_quotes_it():
    credentials = Credentials({"TOKEN": "Bearer a/b+c=="})
    (target,) = TARGETS.validate_python(
        [{"webhook": "https://example.org/path-of/it?k=v", "headers_env": {"X-A": "TOKEN"}}]
    )
    WebhookChannel(target, "label", credentials)
    quoted = ("https://example.org/path-of/it?k=v", "/path-of/it?k=v", "Bearer a/b+c==", "a/b+c==")
    for text in (*quoted, quote(quoted[-1], safe=""), base64.b64encode(b"a/b+c==").decode()):
        shown = credentials.hide(f"it said {text} and more")
        assert shown == "it said … and more"


@pytest.mark.parametrize(
    ("keys", "environment", "words"),
    [
        ({"secret_env": "SECRET"}, {}, ["secret_env", "SECRET", "not set"]),
        ({"secret_env": "SECRET"}, {"SECRET": ""}, ["SECRET", "not set"]),
        ({"secret_env": "SECRET"}, {"SECRET": "whsec_geheim!"}, ["SECRET", "no base64"]),
        ({"headers_env": {"X-A": "TOKEN"}}, {}, ["headers_env.X-A", "TOKEN", "not set"]),
        ({"headers_env": {"X-A": "TOKEN"}}, {"TOKEN": "geheim\nX-B: c"}, ["X-A", "line of ASCII"]),
        ({"ca_file": "/nowhere/ca.pem"}, {}, ["ca_file /nowhere/ca.pem", "PEM"]),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line_without_secrets(folder, keys, environment, words):
    target = {"webhook": "https://example.org/geheim", **keys}
    with pytest.raises(ConfigError) as caught, delivering(folder, target, environment=environment):
        pass
    line = str(caught.value)
    assert line.startswith("parcel: webhook https://example.org: ")
    assert all(word in line for word in words)
    assert "geheim" not in line
    assert line.isprintable()


def test_nothing_of_the_environment_is_a_proxy(folder, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:9")
    with server() as running, delivering(folder, hook(running), back_off=SOON) as delivery:
        delivery.send(message(0))
        until(lambda: count(delivery, "delivered"))
