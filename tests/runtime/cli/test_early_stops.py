"""A signal while the threads of several sources are being started."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace

import pytest

from vicort.runtime.cli.run import watch_together


class StartedWatch:
    """Runs until its source is stopped; the first one that runs is interrupted."""

    label = "source"

    def __init__(self, interrupts: bool) -> None:
        self._stopped = threading.Event()
        self._interrupts = interrupts
        self.source = SimpleNamespace(stop=self._stopped.set)
        self.ended_well = False

    def run(self) -> int:
        if self._interrupts:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        self.ended_well = self._stopped.wait(timeout=10)
        return 0


def test_sources_that_were_started_end_well_by_a_signal_that_comes_before_the_next_one(monkeypatch):
    start = threading.Thread.start

    def slow(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(0.5)

    monkeypatch.setattr(threading.Thread, "start", slow)
    watches = [StartedWatch(True), StartedWatch(False)]
    context = SimpleNamespace(stopping=threading.Event())
    with pytest.raises(KeyboardInterrupt):
        watch_together(watches, context)
    assert [watch.ended_well for watch in watches] == [True, False]
    assert context.stopping.is_set()
