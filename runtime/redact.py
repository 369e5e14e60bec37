"""Removes user names, passwords and query values from URLs before they are shown."""

from __future__ import annotations

import re

HIDDEN = "?…"
# Each sign with the forms that Unicode normalisation (NFKC) makes it of: Python and others
# normalise a URL, and then quote it.
COLON, AT, MARK, SLASH, EQUALS = ":︓﹕：", "@﹫＠", "?︖﹖？", "/／", "=⁼₌﹦＝"
# also with a wrong number of slashes; bounded, so that a long word takes no longer than its length
_SCHEME = rf"([^\W\d_][\w+.-]{{0,30}}[{COLON}][{SLASH}]+)"
_URL = re.compile(rf"{_SCHEME}(\S*)")
_WHOLE = re.compile(rf"{_SCHEME}(.*)", re.DOTALL)
_AT = re.compile(f"[{AT}]")
_MARK = re.compile(f"[{MARK}]")
_WORD = re.compile(r"\S+")
_VALUE = re.compile(rf"(?<!\w)(\w+)([{EQUALS}])([^\s&﹠＆;'\"]+)")
_SECRET = re.compile(
    "pass|pwd|token|secret|key|auth|credential|^sig|^user|login|session", re.IGNORECASE
)
# Settings of a system, whose values are shown: by their last key after `--set`, and by their whole
# name.
_SET = re.compile(r"(?:^|\s)--set\s+(?:\w+\.)*$")
_SECTION = re.compile(r"(?:^|[^\w.])(?:--)?(\w+\.)$")
OWN_SETTINGS = frozenset(
    {"memory.tokens", "text.tokens"}
    | {"long_term.tokens", "long_term.most_tokens", "long_term.passes"}
)
MAX_PATH = 80  # characters of what stands before the last key of a setting
_HEADER = re.compile(r"(?<!\w)((?:proxy-)?authorization\s*[:=])[^\r\n]+", re.IGNORECASE)
MAX_NAME = 64  # characters of the name of a value


def redact_url(url: str) -> str:
    """One URL without its credentials. Other text is redacted as `redact` does.

    Everything up to the last @ is removed, because a password may contain any character. A path
    with an @ loses its start.
    """
    match = _WHOLE.fullmatch(url)
    return match[1] + _bare(match[2]) if match else redact(url)


def redact(text: str) -> str:
    """Redact every URL in a text, and what looks like credentials without one: `name:word@`, as
    Python quotes the host part of a URL, and `password=word`. A URL ends at white space. Settings
    of a system, such as `--set memory.tokens=6000`, stay."""
    text = _URL.sub(lambda url: url[1] + _bare(url[2]), text)
    text = _WORD.sub(lambda word: _without_user(word[0]), text)
    text = _VALUE.sub(_shown_value, text)
    return _HEADER.sub(r"\1 …", text)


def redact_exception(error: BaseException) -> None:
    """Redact the arguments of an exception of another library, which a traceback shows."""
    error.args = tuple(redact(each) if isinstance(each, str) else each for each in error.args)


def _bare(rest: str) -> str:
    """The URL after `scheme://`, without user info and query values."""
    path, *values = _MARK.split(rest, maxsplit=1)
    # either a password with a question mark or a query with an @, so nothing is shown
    if values and _AT.search(values[0]):
        return "…"
    return _AT.split(path)[-1] + (HIDDEN if values else "")


def _without_user(word: str) -> str:
    before, *_ = parts = _AT.split(word)
    if len(parts) == 1 or not any(sign.isalnum() for part in parts[:-1] for sign in part):
        return word
    quotes = before[: len(before) - len(before.lstrip("'\"(<["))]
    return f"{quotes}…{parts[-1]}"


def _shown_value(found: re.Match[str]) -> str:
    """`name=value`, the value hidden where the name is that of a secret."""
    name, equals = found[1], found[2]
    if not _SECRET.search(name[-MAX_NAME:]) or _is_setting(found):
        return found[0]
    return f"{name}{equals}…"


def _is_setting(found: re.Match[str]) -> bool:
    before = found.string[max(0, found.start() - MAX_PATH) : found.start()]
    if _SET.search(before):
        return any(setting.endswith(f".{found[1]}") for setting in OWN_SETTINGS)
    section = _SECTION.search(before)
    return bool(section and section[1] + found[1] in OWN_SETTINGS)
