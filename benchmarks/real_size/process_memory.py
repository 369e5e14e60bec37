"""The memory of this process, when a model is loaded and at the peak."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

FIELDS = {"VmRSS": "rss_mb", "RssAnon": "private_mb"}
SAMPLED_EVERY = 0.25  # seconds


def process_memory() -> dict[str, float]:
    """MB of 1e6 bytes: of all pages of this process (rss_mb), and of those that are no page of a
    file (private_mb). The kernel keeps these counts; to sum them up from all pages, as
    /proc/self/smaps_rollup does, stops a process of 4 GB for 0.05 s."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[FIELDS[name]] = int(value.split()[0]) * 1024 / 1e6
    return found


class MemoryPeak:
    """Samples `process_memory` from the start of a block to its end."""

    def __init__(self) -> None:
        self._peak: dict[str, float] = {}
        self._loaded: dict[str, float] = {}
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch)

    def note_loaded(self) -> float:
        """Keep the memory now as that of the loaded model; returns the moment, by perf_counter,
        before that."""
        moment = time.perf_counter()
        self._loaded = self._sample()
        return moment

    def report(self) -> dict[str, float]:
        """MB, as `process_memory` has them, loaded and at the peak."""
        return {f"loaded_{name}": value for name, value in self._loaded.items()} | {
            f"peak_{name}": value for name, value in self._peak.items()
        }

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY):
            self._sample()

    def _sample(self) -> dict[str, float]:
        now = process_memory()
        with self._lock:
            for name, value in now.items():
                self._peak[name] = max(value, self._peak.get(name, 0))
        return now
