"""Which CPU backend runs a new engine set fastest on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vicort.export.engine_set_writer import seal
from vicort.export.onnxruntime_products import packs, repack
from vicort.export.verify import (
    frame_inputs,
    head_inputs,
    language_inputs,
)
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.device import Array
from vicort.runtime.devices.host import InlineStream
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.engine_run import Arrays, output_arrays
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import Manifest

RUNS = 7  # of each kind at most; the least time counts
# part of the preferred backend's time by which another must be faster: on a machine with other work
# measured times of equal engines differ by some ten per cent from run to run
MARGIN = 0.2
ENOUGH_S = 5.0  # after which a run is not repeated any more
ANSWER_TOKENS = 16
Runs = list[tuple[Engine, dict[str, Array]]]


@dataclass(frozen=True)
class EngineTimes:
    """Seconds that engines take on the threads that a process may use."""

    ready: float  # loading, and the first run of each kind
    chunk: float  # vision and prefill of a full chunk
    token: float  # of an answer

    @property
    def job(self) -> float:
        """A chunk, and an answer of 16 tokens after it."""
        return self.chunk + ANSWER_TOKENS * self.token

    def __str__(self) -> str:
        return (
            f"{_duration(self.chunk)} a chunk, {_duration(self.token)} a token, ready in "
            f"{_duration(self.ready)}"
        )


def choose(folder: Path, manifests: Sequence[Manifest], say: Callable[[str], None]) -> Manifest:
    """Of the manifests that a set in `folder` may get, each of another backend, the first, which is
    preferred, unless another's engines take clearly less time for a chunk and an answer. The set
    becomes that backend's."""
    times: dict[str, EngineTimes] = {}
    with TemporaryDirectory(dir=folder.parent, prefix=".building-packed-") as temporary:
        places = {each.backend: _place(each, folder, Path(temporary)) for each in manifests}
        for manifest in manifests:
            seal(places[manifest.backend], manifest)
            measured = times[manifest.backend] = engine_times(places[manifest.backend])
            say(f"{manifest.backend}: {measured}")
        chosen, why = _chosen(manifests, times)
        if places[chosen.backend] != folder:
            for file in places[chosen.backend].iterdir():
                file.replace(folder / file.name)
    seal(folder, chosen)
    say(f"chose {chosen.backend}: {why} for a chunk and {ANSWER_TOKENS} tokens")
    return chosen


def _chosen(
    manifests: Sequence[Manifest], times: Mapping[str, EngineTimes]
) -> tuple[Manifest, str]:
    """The manifest, and why it was taken."""
    preferred = manifests[0]
    fastest = min(manifests, key=lambda each: times[each.backend].job)
    if fastest is preferred:
        return preferred, "the least time"
    allowed = (1 - MARGIN) * times[preferred.backend].job
    if times[fastest.backend].job < allowed:
        return fastest, f"over {MARGIN:.0%} less time than {preferred.backend}"
    return preferred, f"preferred, as {fastest.backend} does not take {MARGIN:.0%} less time"


def _place(manifest: Manifest, folder: Path, temporary: Path) -> Path:
    """Where the files are as the manifest's backend takes them."""
    if not packs(manifest):
        return folder
    repack(folder, manifest.activations, temporary)
    for file in folder.iterdir():
        if not (temporary / file.name).exists():
            os.link(file, temporary / file.name)
    return temporary


def engine_times(folder: Path) -> EngineTimes:
    """Measured with random input. Where a chunk takes long, its time is that of one unit, times the
    units."""
    stream, began = InlineStream("timing"), time.perf_counter()
    with EngineSet.open(folder) as engines:
        unit, token = _unit_runs(engines, 1), _token_runs(engines)
        for engine, bindings in [*unit, *token]:
            engine.enqueue(bindings, stream).done()
        ready = time.perf_counter() - began
        units = engines.manifest.model.chunk_frames // UNIT_FRAMES
        chunk = units * _least_seconds(unit, stream)
        if chunk < ENOUGH_S:
            chunk = _least_seconds(_unit_runs(engines, units), stream)
        return EngineTimes(ready, chunk, _least_seconds(token, stream))


def _unit_runs(engines: EngineSet, units: int) -> Runs:
    """Vision and prefill of so many units."""
    model, random = engines.manifest.model, np.random.default_rng(0)
    return [
        _bound(engines.vision, frame_inputs(model, units, random)),
        _bound(engines.llm, _language_inputs(engines, units * model.unit_tokens, random)),
    ]


def _token_runs(engines: EngineSet) -> Runs:
    model, random = engines.manifest.model, np.random.default_rng(0)
    return [
        _bound(engines.llm, _language_inputs(engines, 1, random)),
        _bound(engines.head, head_inputs(model, engines.dtype, random)),
    ]


def _language_inputs(engines: EngineSet, rows: int, random: np.random.Generator) -> Arrays:
    """With pages of four chunks."""
    model = engines.manifest.model
    pages = 4 * model.chunk_frames // UNIT_FRAMES * model.unit_tokens // model.page_tokens
    return language_inputs(model, engines.dtype, rows, pages, random, engines.manifest.kv)


def _bound(engine: Engine, inputs: Arrays) -> tuple[Engine, dict[str, Array]]:
    return engine, dict[str, Array](inputs | output_arrays(engine, inputs))


def _least_seconds(runs: Runs, stream: InlineStream) -> float:
    times: list[float] = []
    while len(times) < RUNS and sum(times) < ENOUGH_S:
        start = time.perf_counter()
        for engine, bindings in runs:
            engine.enqueue(bindings, stream).done()
        times.append(time.perf_counter() - start)
    return min(times)


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
