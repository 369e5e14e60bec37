"""What ReSV's long-term memory reads, how that differs by layer and head, and the time that
clustering and choosing take.

    python -m vicort.benchmarks.studies.key_clusters --streams 2 \\
        --out benchmarks/results/key_clusters.json

Streams of the synthetic world: seven things, then nothing for `--units` units; then "what color was
the SHAPE?" about each. Shares are of the tokens that a layer and head holds, counted from
1,000 tokens on.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
from numpy.typing import DTypeLike

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish, study_parser
from vicort.benchmarks.evaluation.rules import is_right
from vicort.benchmarks.evaluation.shapestream import NOW, THINGS, load
from vicort.benchmarks.evaluation.watching import Candidate, watch
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term import opening
from vicort.runtime.memory.long_term.cluster_view import ClusterView
from vicort.runtime.memory.long_term.key_clusters import KeyClusterMemory
from vicort.runtime.memory.long_term.long_term import Departing
from vicort.runtime.memory.long_term.selection import Selection
from vicort.runtime.policies.long_term import KeyClusters
from vicort.runtime.policies.system import load_system

FEW = 1000  # tokens: with fewer, a share says little


@dataclass
class Watched:
    """What one memory did."""

    # by reader: [G] of each choice
    shares: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: KeyClusterMemory | None = None


class WatchedMemory(KeyClusterMemory):
    watched: Watched

    def absorb(self, departing: Departing) -> None:
        start = time.thread_time()
        super().absorb(departing)
        self.watched.milliseconds["clustering a chunk"].append(1e3 * (time.thread_time() - start))

    def view(self, leased: bool = True) -> ClusterView:
        return WatchedView(self, leased)


class WatchedView(ClusterView):
    def __init__(self, memory: WatchedMemory, leased: bool) -> None:
        super().__init__(memory.snapshot(leased), memory.count_capped)
        self._watched, self._reader = memory.watched, "questions" if leased else "chunks"

    def choose(self, q: np.ndarray) -> Selection:
        start = time.thread_time()
        selection = super().choose(q)
        self._watched.milliseconds[f"choosing, {self._reader}"].append(
            1e3 * (time.thread_time() - start)
        )
        held = self.snapshot.tokens.sum(axis=1)
        if held.min(initial=FEW) >= FEW:
            self._watched.shares[self._reader].append(
                selection.filled.reshape(len(held), -1).sum(axis=1) / held
            )
        return selection


class Recorder:
    """Opens watched memories in place of the runtime's."""

    def __init__(self) -> None:
        self.runs: list[Watched] = []

    def open(
        self, model: ModelSpec, host_mb: float, dtype: DTypeLike, settings: KeyClusters
    ) -> KeyClusterMemory:
        memory = WatchedMemory(model, host_mb, dtype, settings)
        memory.watched = Watched(memory=memory)
        self.runs.append(memory.watched)
        return memory


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__, streams=2)
    parser.add_argument(
        "--units", type=int, default=250, help="empty units after the things (default: %(default)s)"
    )
    options = parser.parse_args()
    system = load_system("resv")
    if not isinstance(system.long_term, KeyClusters):
        raise ConfigError("system resv has another long-term memory than key clusters")
    settings = system.long_term.model_dump()
    recorder = Recorder()
    right: list[bool] = []
    prefill: list[float] = []
    with (
        EngineSet.open(options.engine_dir) as engines,
        patch.object(opening, "KeyClusterMemory", recorder.open),
    ):
        candidate = Candidate.of(engines, system)
        for video in load(engines.manifest.model, options.streams, (options.units,)).videos:
            items = tuple(item for item in video.items if item.task != NOW)
            watched = watch(replace(video, items=items), candidate)
            asked = zip(items, watched.replies, strict=True)  # all at the same moment
            right += [is_right(item, [reply]) for item, reply in asked]
            prefill.append(watched.summary["stage_ms"]["prefill"] / watched.summary["chunks"])
            print(video.name, file=sys.stderr, flush=True)
    conditions = {
        "engines": options.engine_dir.name,
        "streams": f"{options.streams} of {options.units} empty units after {THINGS} things",
        "long_term": settings,
        "machine": machine.conditions(),
    }
    result = {
        "conditions": conditions,
        "accuracy": round(float(np.mean(right)), 4),
        "asked": len(right),
        "prefill_ms_a_chunk": round(float(np.mean(prefill)), 2),  # clustering and choosing included
        **summarise(recorder.runs),
    }
    return finish(result, options.out)


def summarise(runs: list[Watched]) -> dict[str, object]:
    result: dict[str, object] = {}
    for reader in ("chunks", "questions"):
        choices = [share for run in runs for share in run.shares[reader]]
        if not choices:
            continue
        shares = np.array(choices)  # [choices, G]
        low, high = np.percentile(shares, [5, 95])
        result[f"share read by {reader}"] = {
            "mean": round(float(shares.mean()), 4),
            "p5": round(float(low), 4),
            "p95": round(float(high), 4),
            "by layer and head": np.round(shares.mean(axis=0), 4).tolist(),
            "choices": len(shares),
        }
    for what in runs[0].milliseconds:
        result[f"cpu ms, {what}"] = round(
            float(np.median(np.concatenate([run.milliseconds[what] for run in runs]))), 2
        )
    memories = [run.memory for run in runs if run.memory]
    tokens = np.concatenate([memory.cluster_tokens() for memory in memories])
    model = memories[0].model
    cells = sum(memory.cells_in_use() for memory in memories) * model.layers * model.kv_heads
    result["tokens a cluster"] = round(float(tokens.mean()), 1)
    result["share of its cells' room that a cluster fills"] = round(
        float(tokens.sum() / cells / model.page_tokens), 3
    )
    result["times a head had to do with most_cells"] = sum(memory.capped for memory in memories)
    return result


if __name__ == "__main__":
    sys.exit(main())
