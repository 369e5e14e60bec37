"""Files that a pattern names, without going round links in circles."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path


def matches(pattern: str) -> Iterator[Path]:
    """What a pattern of the shell names, with ** for folders of any depth. As in the shell, a name
    that begins with a dot is matched only where the pattern says so; ** follows no links."""
    parts = Path(pattern).parts
    first = next((at for at, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base, wild = Path(*parts[:first]), [_whole(part) for part in parts[first:]]
    if not wild:
        return
    if wild[-1] == "**":
        wild.append("*")
    hidden = {part for part in wild if part.startswith(".")}
    for match in base.glob("/".join(wild)):
        names = match.relative_to(base).parts
        if hidden or not any(name.startswith(".") for name in names):
            yield match


def _whole(part: str) -> str:
    """A part in which ** stands for a whole name, or only *."""
    return part if part == "**" else part.replace("**", "*")
