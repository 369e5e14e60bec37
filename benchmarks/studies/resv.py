"""What ReSV's long-term memory reads, how that differs by layer and head, and the time that
clustering and choosing take.

    python -m vicort.benchmarks.studies.resv --streams 2 \\
        --out benchmarks/results/key_clusters.json

Streams of the synthetic world: seven things, then nothing for `--units` units; then "what color was
the SHAPE?" about each. Shares are of the tokens that a layer and head holds, counted from
1,000 tokens on.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.study import finish, study_parser, with_budget
from vicort.benchmarks.evaluation.rules import is_right
from vicort.benchmarks.evaluation.shapestream import NOW, THINGS, load
from vicort.benchmarks.evaluation.watching import Candidate, watch
from vicort.runtime.core import TimeRange
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError
from vicort.runtime.memory.long_term import factory
from vicort.runtime.memory.long_term.cluster_view import ClusterView
from vicort.runtime.memory.long_term.key_clusters import KeyClusterMemory
from vicort.runtime.memory.long_term.protocols import Departing
from vicort.runtime.memory.long_term.selection import Selection
from vicort.runtime.policies.long_term import KeyClusters

FEW = 1000  # tokens: with fewer, a share says little


@dataclass
class ClusterRecord:
    """What the memories of all streams did."""

    # by reader: [G] of each choice
    shares: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memories: list[KeyClusterMemory] = field(default_factory=list)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.milliseconds[what].append(1e3 * (time.thread_time() - start))


RECORD = ClusterRecord()


class WatchedMemory(KeyClusterMemory):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        RECORD.memories.append(self)

    def absorb(self, departing: Departing) -> None:
        with RECORD.timed("clustering a chunk"):
            super().absorb(departing)

    def view(self, leased: bool = True, within: TimeRange | None = None) -> ClusterView:
        return WatchedView(self, leased, within)


class WatchedView(ClusterView):
    def __init__(self, memory: WatchedMemory, leased: bool, within: TimeRange | None) -> None:
        super().__init__(memory.snapshot(leased, within), memory.count_capped)
        self._reader = "questions" if leased else "chunks"

    def choose(self, q: np.ndarray) -> Selection:
        with RECORD.timed(f"choosing, {self._reader}"):
            selection = super().choose(q)
        held = self.snapshot.tokens.sum(axis=1)
        if held.min(initial=FEW) >= FEW:
            read = selection.filled.reshape(len(held), -1).sum(axis=1)
            RECORD.shares[self._reader].append(read / held)
        return selection


def main() -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__, streams=2)
    parser.add_argument(
        "--units", type=int, default=250, help="empty units after the things (default: %(default)s)"
    )
    options = parser.parse_args()
    system = with_budget("resv", host_mb=256)
    if not isinstance(system.long_term, KeyClusters):
        raise ConfigError("system resv has another long-term memory than key clusters")
    settings = system.long_term.model_dump()
    right: list[bool] = []
    prefill: list[float] = []
    with (
        EngineSet.open(options.engine_dir) as engines,
        patch.object(factory, "KeyClusterMemory", WatchedMemory),
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
        **summarise(RECORD),
    }
    return finish(result, options.out)


def summarise(watched: ClusterRecord) -> dict[str, object]:
    result: dict[str, object] = {}
    for reader, choices in sorted(watched.shares.items()):
        shares = np.array(choices)  # [choices, G]
        low, high = np.percentile(shares, [5, 95])
        result[f"share read by {reader}"] = {
            "mean": round(float(shares.mean()), 4),
            "p5": round(float(low), 4),
            "p95": round(float(high), 4),
            "by layer and head": np.round(shares.mean(axis=0), 4).tolist(),
            "choices": len(shares),
        }
    for what, milliseconds in watched.milliseconds.items():
        result[f"cpu ms, {what}"] = round(float(np.median(milliseconds)), 2)
    memories = watched.memories
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
