"""POSTs each message to an HTTP server."""

from __future__ import annotations

import base64
import email.utils
import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from vicort.runtime.alerts.addresses import PrivateAddress, look_up
from vicort.runtime.alerts.channel import THREAD, NotDelivered
from vicort.runtime.alerts.credentials import Credentials
from vicort.runtime.alerts.cut_off import CutOff
from vicort.runtime.alerts.message import Message, json_bytes
from vicort.runtime.alerts.signature import signature, signing_key
from vicort.runtime.alerts.targets import WebhookTarget
from vicort.runtime.alerts.tls import tls_context
from vicort.runtime.errors import ConfigError
from vicort.runtime.packages import missing_package
from vicort.runtime.redact import redact_url

# answers that are about this message: bad request, content too large, unsupported media type,
# unprocessable content. All others may be those of a proxy, or of a receiver that is being mended
REFUSED = (400, 413, 415, 422)
GONE = 410  # Standard Webhooks: the receiver wants no more
# loggers of httpx and below it, which show headers of answers
LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11")


class OtherThreads(logging.Filter):
    """Drops what is logged on a thread that delivers: a receiver may send back what it was sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not threading.current_thread().name.startswith(THREAD)


ELSEWHERE = OtherThreads()


class WebhookChannel:
    """Each try is one connection to an address that was looked up and checked for it. Redirects are
    not followed, and proxies of the environment are not used."""

    def __init__(self, target: WebhookTarget, label: str, credentials: Credentials) -> None:
        """Raises ConfigError if a variable is not set, or httpx is not installed."""
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{label}: a webhook needs the extra `alerts` of vicort: "
                f"{missing_package(error) or error}"
            ) from error
        for name in LOGGERS:
            logging.getLogger(name).addFilter(ELSEWHERE)  # once, as it is the same one
        self._httpx = httpx
        self._target = target
        self._credentials = credentials
        self._url = httpx.URL(target.webhook)
        credentials.conceal(target.webhook)
        if len(path := self._url.raw_path.decode()) > 1:
            credentials.conceal(path)
        self._headers = {
            name: credentials.read(variable, f"headers_env.{name}", label)
            for name, variable in target.headers_env.items()
        }
        for name, value in self._headers.items():
            if not all(" " <= letter <= "~" or letter == "\t" for letter in value):
                raise ConfigError(f"{label}: the value of header {name} is no line of ASCII")
        self._key = self._signing_key(label)
        self._transport = httpx.HTTPTransport(
            verify=_tls(target, label),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._cut_off: CutOff | None = None

    @property
    def timeout(self) -> float:
        return self._target.timeout

    def check(self, seconds: float) -> None:
        """Connects, and sends nothing."""
        with CutOff(seconds) as limit:
            for address in self._addresses():
                try:
                    socket.create_connection((address, self._target.port), limit.left()).close()
                    return
                except OSError as error:
                    failed = error
            raise NotDelivered(self._reason(failed, limit)) from failed

    def deliver(self, message: Message, seconds: float) -> None:
        document = message.document()
        if message.picture and self._target.picture == "attach":
            document["picture_base64"] = base64.b64encode(message.picture).decode()
        body = json_bytes(document)
        with CutOff(seconds) as limit:
            self._cut_off = limit
            try:
                self._post(self._addresses(), self._signed(message, body), body, limit)
            finally:
                self._cut_off = None

    def keep(self, seconds: float) -> None:
        pass

    def abort(self) -> None:
        if limit := self._cut_off:
            limit.cut()

    def close(self) -> None:
        self._transport.close()

    def _signing_key(self, label: str) -> bytes | None:
        if not (variable := self._target.secret_env):
            return None
        try:
            return signing_key(self._credentials.read(variable, "secret_env", label))
        except ValueError as error:
            raise ConfigError(f"{label}: the secret in {variable} is not valid: {error}") from error

    def _signed(self, message: Message, body: bytes) -> dict[str, str]:
        """The headers of one try."""
        name = quote(message.key, safe="!#$&'()*+,/:;=?@[]~")  # what a header may hold
        timestamp = int(time.time())
        headers = {
            "Host": self._target.parts.netloc,
            "Content-Type": "application/json",
            "Idempotency-Key": name,
            "webhook-id": name,
            "webhook-timestamp": str(timestamp),
            **self._headers,
        }
        if not any(name.lower() == "user-agent" for name in self._headers):
            headers["User-Agent"] = "vicort"
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, name, timestamp, body)
        return headers

    def _addresses(self) -> list[str]:
        host = self._target.parts.hostname or ""
        try:
            return look_up(host, self._target.port, allow_private=self._target.allow_private)
        except PrivateAddress as error:
            raise NotDelivered(str(error)) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long
            raise NotDelivered(f"{host} is not found") from error

    def _post(
        self, addresses: list[str], headers: dict[str, str], body: bytes, limit: CutOff
    ) -> None:
        """To the first of the addresses that takes a connection."""
        httpx = self._httpx
        for number, address in enumerate(addresses, 1):
            seconds = limit.left()
            # the rest of the time is for the other addresses
            connect = seconds if number == len(addresses) else seconds / 2
            request = httpx.Request(
                "POST",
                self._url.copy_with(host=address),
                headers=headers,
                content=body,
                extensions={
                    "timeout": httpx.Timeout(seconds, connect=connect).as_dict(),
                    "sni_hostname": self._target.parts.hostname,
                    "trace": limit.trace,
                },
            )
            try:
                answer = self._transport.handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if number < len(addresses) and not limit.happened:
                    continue
                raise NotDelivered(self._reason(error, limit)) from error
            except (httpx.HTTPError, OSError) as error:
                raise NotDelivered(self._reason(error, limit)) from error
            answer.close()
            return self._judge(answer.status_code, answer.headers)

    def _judge(self, code: int, headers: Mapping[str, str]) -> None:
        """Raises NotDelivered unless the receiver has taken the message."""
        if 200 <= code < 300:
            return
        if 300 <= code < 400:
            raise NotDelivered(_led(headers.get("location", "")))
        raise NotDelivered(
            f"it answered {code}",
            refused=code in REFUSED,
            final=code == GONE,
            retry_after=retry_after(headers.get("retry-after", ""), time.time()),
        )

    def _reason(self, error: Exception, limit: CutOff) -> str:
        if limit.happened or isinstance(error, (self._httpx.TimeoutException, TimeoutError)):
            return f"no answer within {self._target.timeout:g} s"
        cause = _cause(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.errno in errno.errorcode and cause.strerror:
            return cause.strerror.lower()
        return self._credentials.reason(error)


def retry_after(value: str, now: float) -> float:
    """Seconds of a header Retry-After, which is a number of seconds or a date (RFC 9110); 0 if it
    is neither. now: seconds since 1970."""
    if value.strip().isascii() and value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _tls(target: WebhookTarget, label: str) -> ssl.SSLContext:
    if target.parts.scheme == "https":
        return tls_context(target.ca_file, label)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which is not used, and trusts nobody


def _led(location: str) -> str:
    try:
        server = urlsplit(location).hostname or "another path"
    except ValueError:
        server = "another place"
    return f"it leads to {redact_url(server)}, and redirects are not followed: give that URL"


def _cause(error: BaseException) -> BaseException:
    """The innermost error of the socket or of TLS."""
    found = error
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
        if isinstance(error, OSError):
            found = error
    return found
