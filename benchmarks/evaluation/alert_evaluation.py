"""vicort-eval alerts: standing alerts over hours of the synthetic world.

The rule of the alerts is chosen on validation streams: other seeds, in looks that the model was
trained with. It is measured on streams in looks that training never saw. Files are made once and
kept. What the alerts answered is in the record, so that a second run resumes, and another choice of
a rule needs no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation import alert_streams
from vicort.benchmarks.evaluation.alert_readings import (
    Readings,
    Standing,
    hear_alerts,
    read_alerts,
)
from vicort.benchmarks.evaluation.alert_streams import AlertStream, make_alert_stream
from vicort.benchmarks.evaluation.alert_tuning import HeardStream
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.benchmarks.evaluation.shapestream import drawing_sources
from vicort.benchmarks.evaluation.watching import Watched
from vicort.runtime.core import UNIT_FRAMES, Event
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Manifest
from vicort.runtime.policies.system import System
from vicort.runtime.session import Session

VALIDATION = 1_000_000  # added to the seeds of streams on which the rule is chosen
INSTRUCTION = "say when a shape appears"  # of a model that speaks by itself
FIRED, READ = "fired", "read"  # keys of a record's line


@dataclass(frozen=True)
class AlertPlan:
    """Which streams are watched, and how their alerts are asked."""

    hours: int  # in held-out looks, a stream each
    validation_hours: int  # in looks of training
    seed: int  # of the first stream
    standing: Standing
    fps: Fraction  # frames a second that are taken
    cache: Path  # of its video files
    seconds: float  # of a stream

    def __post_init__(self) -> None:
        if (alert_streams.FPS / self.fps).denominator != 1:
            raise ConfigError(
                f"--fps {float(self.fps):g}: the streams have {alert_streams.FPS} frames a second: "
                "give 4, 2, 1 or another of which they are a multiple"
            )
        unit = UNIT_FRAMES / self.fps
        if self.standing.every < unit or (self.standing.every / unit).denominator != 1:
            raise ConfigError(
                f"--ask-every {float(self.standing.every):g}: a temporal unit at "
                f"{float(self.fps):g} frames a second takes {float(unit):g} s: give a multiple of "
                "that"
            )

    @property
    def validation(self) -> Iterator[AlertStream]:
        first = self.seed + VALIDATION
        for seed in range(first, first + self.validation_hours):
            yield make_alert_stream(seed, "training", self.seconds)

    @property
    def test(self) -> Iterator[AlertStream]:
        for seed in range(self.seed, self.seed + self.hours):
            yield make_alert_stream(seed, "held-out", self.seconds)

    def fitted(self, system: System) -> System:
        """The same system with chunks that are full when alerts are asked, so that no question has
        to wait for half a chunk. A system that speaks by itself stays as it is."""
        if system.speaks.by_itself:
            return system
        return system.with_settings([f"chunk.frames={int(self.standing.every * self.fps)}"])

    def settings(self, manifest: Manifest) -> dict[str, Any]:
        """What the readings depend on, systems and the number of streams apart."""
        return {
            "benchmark": "alerts",
            "streams": drawn_settings() | {"seconds": self.seconds},
            "seed": self.seed,
            "alerts": list(self.standing.shapes),
            "ask_every_s": float(self.standing.every),
            "window_s": float(self.standing.window),
            "fps": str(self.fps),
            "model": manifest.model.name,
            "precision": manifest.precision,
            "backend": manifest.backend,
            "checkpoint": manifest.checkpoint,
        }


class AlertWatcher:
    """Watches streams with several systems, and keeps what came of it in a record."""

    def __init__(
        self,
        plan: AlertPlan,
        engines: EngineSet,
        systems: Mapping[str, System],
        ledger: Ledger,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._engines, self._systems = plan, engines, systems
        self._ledger, self._threads, self._say = ledger, threads, say

    def watch_all(self) -> None:
        """Each stream with each system, unless the record has it already."""
        of = self._plan.hours + self._plan.validation_hours
        for number, stream in enumerate(chain(self._plan.validation, self._plan.test), 1):
            open_ones = {
                name: system
                for name, system in self._systems.items()
                if (name, stream.name) not in self._ledger.watched
                and not (system.speaks.by_itself and number <= self._plan.validation_hours)
            }
            if open_ones:
                started = time.monotonic()
                path = file_of(stream, self._plan.cache)
                drawn = time.monotonic() - started
                for name, system in open_ones.items():
                    self._watch(name, system, stream, path, f"[{number}/{of}]", drawn)

    def _watch(
        self, name: str, system: System, stream: AlertStream, path: Path, place: str, drawn: float
    ) -> None:
        started = time.monotonic()
        open_session = partial(self._session, system)
        plan = self._plan
        found: dict[str, Any]
        if system.speaks.by_itself:
            shapes = plan.standing.shapes
            found = {FIRED: hear_alerts(path, shapes, INSTRUCTION, open_session)}
        else:
            found = {READ: read_alerts(path, plan.standing, open_session).to_json()}
        self._ledger.add(name, stream.name, Watched([], [], found))
        self._say(
            f"{place} {stream.name}, {name}: {len(stream.things)} things, drawn in {drawn:.0f} s, "
            f"watched in {time.monotonic() - started:.0f} s"
        )

    def _session(self, system: System, on_event: Callable[[Event], None] | None) -> Session:
        return Session(
            self._engines,
            system,
            fps=self._plan.fps,
            threads=self._threads,
            overlap=False,  # the stream stands still while its questions are answered
            on_event=on_event,
        )

    def heard(self, name: str, streams: Iterator[AlertStream]) -> list[HeardStream]:
        """What a system that is asked read on these streams."""
        return [
            HeardStream(stream, Readings.from_json(self._found(name, stream)[READ]))
            for stream in streams
        ]

    def fired(
        self, name: str, streams: Iterator[AlertStream]
    ) -> list[tuple[AlertStream, dict[str, list[float]]]]:
        """When a system that speaks by itself reported each shape."""
        return [(stream, self._found(name, stream)[FIRED]) for stream in streams]

    def _found(self, name: str, stream: AlertStream) -> dict[str, Any]:
        return self._ledger.watched[name, stream.name].summary


def drawn_settings() -> dict[str, Any]:
    """All that decides what a stream of a given seed and length shows."""
    constants = {
        key: value
        for key, value in vars(alert_streams).items()
        if key.isupper() and type(value) in (int, float, str, tuple)
    }
    return {"drawing": drawing_sources(), **constants}


def file_of(stream: AlertStream, cache: Path) -> Path:
    """The file of a stream, made if it is not there."""
    said = json.dumps([drawn_settings(), stream.name, stream.duration])
    path = cache / f"alerts-{hashlib.sha256(said.encode()).hexdigest()[:16]}.mp4"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            stream.write(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path
