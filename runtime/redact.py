"""Removes user names, passwords and query values from URLs before they are shown."""

from __future__ import annotations

import re

HIDDEN = "?…"
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*:/+)"  # also with a wrong number of slashes
_URL = re.compile(_SCHEME + r"(\S*)")
_WHOLE = re.compile(_SCHEME + r"(.*)", re.DOTALL)


def redact_url(url: str) -> str:
    """One URL without its credentials. Other text is returned unchanged.

    Everything up to the last @ is removed, because a password may contain any character. A path
    with an @ loses its start.
    """
    match = _WHOLE.fullmatch(url)
    return match[1] + _bare(match[2]) if match else url


def redact(text: str) -> str:
    """Redact every URL in a text. A URL ends at white space."""
    return _URL.sub(lambda url: url[1] + _bare(url[2]), text)


def _bare(rest: str) -> str:
    """The URL after `scheme://`, without user info and query values."""
    path, query, values = rest.partition("?")
    # either a password with a question mark or a query with an @, so nothing is shown
    if "@" in values:
        return "…"
    return path.rpartition("@")[2] + (HIDDEN if query else "")
