"""Certificates that targets with TLS are checked against."""

from __future__ import annotations

import ssl
from pathlib import Path

from vicort.runtime.errors import ConfigError
from vicort.runtime.safe_text import brief, printable


def tls_context(ca_file: Path | None, label: str) -> ssl.SSLContext:
    """Trusts a file of certificates, or those of the system and of certifi, which httpx brings.
    Raises ConfigError if the file cannot be read."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(
            f"{label}: ca_file {printable(str(ca_file))} cannot be read ({brief(error)}): name a "
            "file of certificates in PEM format"
        ) from error
    if ca_file is None:
        try:
            import certifi
        except ModuleNotFoundError:
            return context
        context.load_verify_locations(certifi.where())
    return context
