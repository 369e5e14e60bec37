"""Secrets of targets: read from the environment at the start, and hidden in all that is shown."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from urllib.parse import quote

from vicort.runtime.errors import ConfigError
from vicort.runtime.redact import redact
from vicort.runtime.safe_text import brief

LEAST = 3  # characters of a secret that is looked for in texts
HIDDEN = "…"
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")  # a name that is no secret by mistake


class Credentials:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._secrets: list[str] = []  # the longest first

    def read(self, variable: str, key: str, label: str) -> str:
        """The value of a variable, hidden from now on. Raises ConfigError if there is none.

        key: of the target, that names the variable. label: of the target.
        """
        if not (value := self.environment.get(variable)):
            is_name = _VARIABLE.fullmatch(variable)
            named = variable if is_name else f"of {len(variable)} characters"
            raise ConfigError(
                f"{label}: {key} names the environment variable {named}, which is not set: set it "
                "before the start"
                + ("" if is_name else ", and write its name here, not the secret itself")
            )
        self.conceal(value)
        scheme, _, rest = value.partition(" ")
        if scheme.isalpha() and rest and " " not in rest:  # as in `Bearer TOKEN`
            self.conceal(rest)
        return value

    def conceal(self, secret: str) -> None:
        """Hide a text, and its forms in URLs and in base64."""
        encoded = base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode()
        forms = {secret, quote(secret, safe="", errors="replace"), encoded}
        known = {*self._secrets, *(form for form in forms if len(form) >= LEAST)}
        self._secrets = sorted(known, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """A text without the secrets, and without credentials of URLs."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return redact(text)

    def reason(self, error: BaseException) -> str:
        """An error of another library as one line."""
        hidden = self.hide(str(error))
        return brief(Exception(hidden)) if hidden.strip() else type(error).__name__
