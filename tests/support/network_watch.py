"""Programs whose requests, children and files are watched."""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.c_programs import compiler
from support.shared import once

SOURCE = Path(__file__).with_suffix(".c")
# where a library might leave something behind
PLACES = {
    "HOME": "home",
    "TMPDIR": "temporary",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_STATE_HOME": "home/.local/state",
    "XDG_RUNTIME_DIR": "run",
}


@dataclass(frozen=True)
class Watched:
    done: subprocess.CompletedProcess[str]
    calls: list[str]  # sockets of the internet, look-ups of names, forks
    left: list[str]  # files and folders that were not there before

    @property
    def requests(self) -> list[str]:
        return [call for call in self.calls if not call.startswith("fork")]


@functools.cache
def library() -> Path:
    """The code that is preloaded. It sees native threads and children too."""
    command = [*compiler(".c"), "-D_GNU_SOURCE", "-shared", "-fPIC", str(SOURCE)]

    def make(target: Path) -> None:
        subprocess.run([*command, "-o", str(target), "-ldl"], check=True)

    return once("network-watch.so", make)


def watched(folder: Path, *command: object, timeout: float = 120, **variables: str) -> Watched:
    """A program with a home and all other usual places in `folder`, and with no environment but
    `variables`. It runs in `folder/here`."""
    for name in {*PLACES.values(), "here"}:
        (folder / name).mkdir(parents=True, exist_ok=True)
    log = folder / "calls"
    before = set(folder.rglob("*")) | {log}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder / "here",
        env={
            "PATH": os.environ["PATH"],
            **{name: str(folder / place) for name, place in PLACES.items()},
            "LD_PRELOAD": str(library()),
            "WATCHED": str(log),
            **variables,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    calls = log.read_text().splitlines() if log.exists() else []
    left = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
    return Watched(done, calls, left)
