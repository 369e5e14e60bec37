"""Passwords in URLs: signs that must be percent-encoded there."""

from __future__ import annotations

import re

from vicort.runtime.errors import SourceError

ADVICE = (
    "percent-encode signs such as @ : / ? # [ ] % of its user name and password, as %40 %3A %2F "
    "%3F %23 %5B %5D %25"
)
# RFC 3986: what the name and the password may hold
_PLAIN = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_HOST = re.compile(r"(?:[^:\[\]]*|\[[^\[\]]*\])(?::\d{0,5})?")


def check_credentials(url: str, name: str) -> None:
    """Refuse a URL whose host cannot be told from its password, so that no part of a password is
    looked up as a host.

    name: the URL without credentials, for the error. Raises SourceError.
    """
    host, rest = _split(url)
    unclear = "@" in rest and "@" not in host and not _HOST.fullmatch(host)
    if unclear or re.search(r"\s", host) or not url.isprintable():
        raise SourceError(f"{name} is no well-formed URL: {ADVICE}", "no well-formed URL")


def credentials_advice(url: str) -> str:
    """What to try where this URL cannot be opened; "" if its credentials are well formed."""
    host, rest = _split(url)
    if "@" not in host:
        return ADVICE if "@" in rest and ":" in host else ""
    user, _, password = host.rpartition("@")[0].partition(":")
    return "" if _PLAIN.fullmatch(user) and _PLAIN.fullmatch(password) else ADVICE


def _split(url: str) -> tuple[str, str]:
    """What stands before the path, with user and password, and what follows."""
    after = url.partition("://")[2]
    host = re.split(r"[/?#]", after, maxsplit=1)[0]
    return host, after[len(host) :]
