"""What an HLS playlist on this machine says about time."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

MAX_BYTES = 4 << 20
LENGTH = re.compile(r"#EXTINF:(\d{1,9}(?:\.\d{1,9})?)")


def discontinuities(path: Path) -> tuple[Fraction, ...]:
    """Seconds after the start at which a media playlist declares that timestamps may jump; none
    if it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ()
    time, found = Fraction(0), []
    for line in text.splitlines():
        if line.strip() == "#EXT-X-DISCONTINUITY":
            found.append(time)
        elif match := LENGTH.match(line):
            time += Fraction(match[1])
    return tuple(found)
