"""Runs of contenders in turns, each in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vicort.benchmarks.common.children import ChildFailed, in_child
from vicort.benchmarks.common.spread import Spread, interleaved, spread
from vicort.benchmarks.real_size.clip_job import ClipJob
from vicort.benchmarks.real_size.contenders import Contender


class Rounds:
    """What was measured, and why something was not. A contender that cannot run, or fails, is left
    out of later rounds."""

    def __init__(
        self, job: ClipJob, seconds: float, changed: Callable[[], object] = lambda: None
    ) -> None:
        """seconds: timeout of a run. changed: called after each run."""
        self.job = job
        self.seconds = seconds
        self.skipped: dict[str, str] = {}
        # seconds from the last frame to the first token, or why there are none
        self.screened: dict[str, float | str] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self._changed = changed

    def screen(self, contender: Contender, limit: float) -> dict[str, Any] | None:
        """One run that decides whether a contender takes part; None if it did not succeed."""
        found = self._run(contender, limit)
        self.screened[contender.name] = (
            found["last_frame_to_first_token_s"] if found else self.skipped.pop(contender.name)
        )
        self._changed()
        return found

    def measure(self, contenders: Sequence[Contender], rounds: int) -> None:
        """Every contender once a round, in turns; the order is reversed every second round."""
        interleaved({each.name: partial(self._measured, each) for each in contenders}, rounds)

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Median, quartiles and range of all that was measured."""
        return {
            name: {key: spread([run[key] for run in runs]) for key in runs[0]}
            for name, runs in self.runs.items()
        }

    def report(self) -> dict[str, Any]:
        return {
            "screened": self.screened,
            "skipped": self.skipped,
            "contenders": self.spreads(),
            "runs": self.runs,
        }

    def _measured(self, contender: Contender) -> None:
        if contender.name in self.skipped:
            return
        if found := self._run(contender, self.seconds):
            del found["wall_s"]
            self.runs.setdefault(contender.name, []).append(found)
        self._changed()

    def _run(self, contender: Contender, limit: float) -> dict[str, Any] | None:
        """What a run measured, and its seconds with all that is not counted (wall_s)."""
        print(f"{contender.name} …", end=" ", file=sys.stderr, flush=True)
        start = time.perf_counter()
        if reason := contender.obstacle():
            self.skipped[contender.name] = reason
        else:
            try:
                found = in_child(
                    contender.work, self.job, contender.folder, *contender.more, seconds=limit
                )
            except ChildFailed as error:
                self.skipped[contender.name] = str(error)
            else:
                wall = time.perf_counter() - start
                print(f"{wall:.0f} s", file=sys.stderr, flush=True)
                return found | {"wall_s": wall}
        print(f"skipped: {self.skipped[contender.name]}", file=sys.stderr, flush=True)
        return None
