"""URLs as they may be shown: without user, password, and the values of their query, which may be
keys too."""

from __future__ import annotations

import re

HIDDEN = "?…"
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*:/+)"  # with a slash too few or too many as well
_URL = re.compile(_SCHEME + r"(\S*)")
_WHOLE = re.compile(_SCHEME + r"(.*)", re.DOTALL)


def redact_url(url: str) -> str:
    """One URL without its credentials; anything that is no URL stays as it is.

    Up to the last @ everything goes: passwords are typed with any sign in them, and a path that
    loses its head is the lesser harm.
    """
    match = _WHOLE.fullmatch(url)
    return match[1] + _bare(match[2]) if match else url


def redact(text: str) -> str:
    """The same for every URL within a text; a URL ends at white space."""
    return _URL.sub(lambda url: url[1] + _bare(url[2]), text)


def _bare(rest: str) -> str:
    """What is behind the scheme, without what is before its last @, and behind its first question
    mark."""
    path, query, values = rest.partition("?")
    # a password with a question mark, or a query with an @: who knows which, so nothing is shown
    if "@" in values:
        return "…"
    return path.rpartition("@")[2] + (HIDDEN if query else "")
