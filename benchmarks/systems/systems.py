"""Every system of configs/systems, on the same engines and streams, with the same store: answers
first, then the clock, one at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import vicort.benchmarks
import vicort.configs
import vicort.runtime
from vicort.benchmarks.common.children import in_child, one_line
from vicort.benchmarks.common.machine import now
from vicort.benchmarks.common.settings import Settings
from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.evaluation.items import Dataset
from vicort.benchmarks.systems import significance, system_answers, system_clock
from vicort.benchmarks.systems.recorded import write_recording
from vicort.benchmarks.systems.significance import Verdicts
from vicort.benchmarks.systems.system_answers import old_ages
from vicort.benchmarks.systems.twins import BASELINES, TWIN, twin_of, with_store
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.pages import page_bytes
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import VicortError
from vicort.runtime.manifest import read_manifest
from vicort.runtime.policies.system import System, known_systems, load_system
from vicort.runtime.written_files import write_file

MAKING_S = 3600  # seconds that drawing and encoding the streams may take, where they are not there
Rows = dict[str, dict[str, Any]]  # label of a system or a twin -> what was measured, or its `error`


@dataclass(frozen=True)
class EngineDirs:
    plain: Path
    speaking: Path  # of the same model, trained when to speak without a question

    def of(self, name: str) -> Path:
        """The set that a system runs on."""
        try:
            return self.speaking if load_system(name).speaks.by_itself else self.plain
        except VicortError:  # its row will say so
            return self.plain


def measure(engine_dirs: EngineDirs, cache: Path, settings: Settings) -> dict[str, Any]:
    """Rows of all systems and their twins, and the verdicts. After an interruption, finished
    measurements are reused."""
    folder, engine_dir = cache / "systems", engine_dirs.plain
    folder.mkdir(parents=True, exist_ok=True)
    done = Done(folder, fingerprint(engine_dirs, settings))
    recording = folder / "recording.mp4"
    write_recording(recording)
    streams = in_child(make_streams, engine_dir, settings, seconds=MAKING_S)
    rows = _answers(engine_dirs, streams, settings, done)
    _clock(engine_dirs, recording, settings, done, rows)
    model = read_manifest(engine_dir).model
    chunk_units = model.chunk_frames // UNIT_FRAMES
    done.forget()
    return {
        "engine_set": engine_dir.name,
        "speaking_engine_set": engine_dirs.speaking.name,
        "streams": settings.system_streams,
        "ages": list(settings.system_ages),
        "old_ages": old_ages(settings.system_ages, chunk_units),
        "chunk_units": chunk_units,
        "unit_seconds": UNIT_FRAMES / model.fps,
        "unit_tokens": model.unit_tokens,
        "store_mb": settings.store_mb,
        "store_units": int(settings.store_mb * 1e6 / _unit_bytes(engine_dir)),
        "fill_frames": settings.system_fill_frames,
        "unbounded_fill_frames": settings.unbounded_fill_frames,
        "rows": rows,
        "verdicts": verdicts(
            rows, settings.system_ages, old_ages(settings.system_ages, chunk_units)
        ),
    }


# ---- the two kinds of measurement


def _answers(engine_dirs: EngineDirs, streams: Dataset, settings: Settings, done: Done) -> Rows:
    """As many systems at a time as there are cores, each on one core: answers do not depend on
    time."""

    def of(name: str) -> Rows:
        work = partial(
            in_child,
            system_answers.measure,
            engine_dirs.of(name),
            name,
            streams,
            settings,
            seconds=settings.system_minutes * 60,
        )
        try:
            return done.get(f"{name} answers", work)
        except VicortError as error:
            return {name: {"error": one_line(error)}}

    names = known_systems()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # the slowest first, for a short total
        found = {name: pool.submit(of, name) for name in sorted(names, key=_is_bounded)}
        return {
            label: row for name in ordered(names) for label, row in found[name].result().items()
        }


def _is_bounded(name: str) -> bool:
    """Whether this system's attention window is bounded."""
    try:
        return load_system(name).ingest.window is not None
    except VicortError:  # its row will say so
        return True


def _clock(
    engine_dirs: EngineDirs, recording: Path, settings: Settings, done: Done, rows: Rows
) -> None:
    """Adds the timing to each row that has answers: one system at a time, alone on the machine,
    then its twin.

    The twin reads as many tokens as the system did on the timed stream, which is busier than those
    of the answers.
    """

    def of(label: str, tokens: float | None = None) -> None:
        row, system = rows[label], label.removeprefix(TWIN)
        if "error" in row:
            return
        work = partial(
            in_child,
            clock_of,
            engine_dirs.of(system),
            recording,
            system,
            tokens,
            settings,
            seconds=settings.system_minutes * 60,
        )
        try:
            row |= done.get(f"{label} clock", work)
        except VicortError as error:
            row["error"] = one_line(error)

    def both(name: str) -> None:
        of(name)
        if settings.twins_timed and TWIN + name in rows and "tokens_read_when_timed" in rows[name]:
            of(TWIN + name, rows[name]["tokens_read_when_timed"])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if settings.side_by_side else 1) as pool:
        list(pool.map(both, [label for label in rows if not label.startswith(TWIN)]))


def clock_of(
    engine_dir: Path, recording: Path, name: str, tokens: float | None, settings: Settings
) -> dict[str, Any]:
    """Timing of the system or, if `tokens` is given, of its twin that reads that many."""
    moment = now()

    def choose(engines: EngineSet) -> System:
        system = load_system(name)
        if tokens is not None:
            system = twin_of(system, tokens, engines.manifest.model.unit_tokens)
        return with_store(engines, system, settings.store_mb)

    return system_clock.measure(engine_dir, recording, choose, settings, whole=tokens is None) | {
        "measured": moment
    }


def make_streams(engine_dir: Path, settings: Settings) -> Dataset:
    """The files that all systems watch, made once, and their questions. Runs in a child process,
    because drawing imports vicort.export."""
    model = read_manifest(engine_dir).model
    return shapestream.load(
        model, settings.system_streams, settings.system_ages, cache=shapestream.CACHE.resolve()
    )


def ordered(names: Iterable[str]) -> list[str]:
    """Baselines first, then by name."""
    return sorted(names, key=lambda name: (name not in BASELINES, name))


# ---- who beats whom


def verdicts(rows: Rows, ages: Sequence[int], old: Sequence[int]) -> dict[str, Any]:
    """Of each system: how it compares with its twin and with simplestream, at each age and over the
    old ones together.

    `better` is 1 or -1 where p, raised by Holm's rule over the systems compared in that group of
    questions, is below 5 %; else 0.
    """
    groups = {f"{age} units": [age] for age in ages} | {"old": list(old)}
    result: dict[str, Any] = {}
    for against in ("twin", "simplestream"):
        for group, members in groups.items():
            for name, compared in _compared(rows, against, members).items():
                result.setdefault(name, {}).setdefault(against, {})[group] = compared
    return result


def _compared(rows: Rows, against: str, ages: Sequence[int]) -> dict[str, dict[str, Any]]:
    pairs = {
        name: TWIN + name if against == "twin" else against
        for name in rows
        if not name.startswith(TWIN)
    }
    usable = {
        name: other
        for name, other in pairs.items()
        if name != other and "right" in rows[name] and "right" in rows.get(other, {})
    }
    compared = {
        name: significance.compare(right_of(rows[name], ages), right_of(rows[other], ages))
        for name, other in usable.items()
    }
    adjusted = significance.holm({name: result["p"] for name, result in compared.items()})
    for name, result in compared.items():
        result["p"], result["p_holm"] = float(f"{result['p']:.3g}"), float(f"{adjusted[name]:.3g}")
        result["better"] = (adjusted[name] < significance.ALPHA) * (
            1 if result["difference"] > 0 else -1
        )
    return compared


def right_of(row: dict[str, Any], ages: Sequence[int]) -> Verdicts:
    """Whether each question about events of these ages was answered right, by stream."""
    streams = row["right"][str(ages[0])]
    return {
        int(stream): [mark == "1" for age in ages for mark in row["right"][str(age)][stream]]
        for stream in streams
    }


# ---- what an interruption leaves


class Done:
    """Results of an interrupted run with the same code, engines and settings."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder / f"done-{key}"
        self._folder.mkdir(exist_ok=True)

    def get(self, name: str, work: Callable[[], Any]) -> Any:
        """The stored result of `work`, or a new one. A result with a failed row is not stored, so
        the next run tries again."""
        path = self._folder / f"{name.replace(' ', '_')}.json"
        if path.is_file():
            return json.loads(path.read_text())
        start = time.perf_counter()
        result = work()
        print(f"{name} {time.perf_counter() - start:.0f} s", end=", ", file=sys.stderr, flush=True)
        if '"error"' not in (text := json.dumps(result)):
            self._folder.mkdir(exist_ok=True)  # another run may have deleted it
            write_file(path, text)
        return result

    def forget(self) -> None:
        """Deletes the results, so that the next run starts from the beginning."""
        shutil.rmtree(self._folder, ignore_errors=True)


def fingerprint(engine_dirs: EngineDirs, settings: Settings) -> str:
    """Hash of everything that results depend on: code, systems, engines and settings."""
    digest = hashlib.sha256(json.dumps(vars(settings)).encode())
    for folder in (engine_dirs.plain, engine_dirs.speaking):
        digest.update((folder / "manifest.json").read_bytes())
    for room in (vicort.runtime, vicort.configs, vicort.benchmarks):
        for path in sorted(Path(str(room.__file__)).parent.rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _unit_bytes(engine_dir: Path) -> int:
    with EngineSet.open(engine_dir) as engines:
        model = engines.manifest.model
        return page_bytes(model, engines.pool_dtype) * -(-model.unit_tokens // model.page_tokens)
