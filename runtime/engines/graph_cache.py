"""A cache of CUDA graphs: of the runs with the same shapes and addresses the first is plain, the
second is captured, and later ones replay."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

FIRST_WAIT = 1  # plain runs before a key is captured
# plain runs after a key's graph was evicted: with too many keys, capturing must not dominate
LATER_WAIT = 16
KEYS_PER_GRAPH = 16  # keys whose waits are remembered

Graph = TypeVar("Graph")


class GraphCache(Generic[Graph]):
    """An LRU cache of at most `capacity` graphs. A key that could not be captured is not
    retried."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        # plain runs left before a key is captured
        self._waits: OrderedDict[Hashable, float] = OrderedDict()

    def get(self, key: Hashable) -> Graph | None:
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def is_due(self, key: Hashable) -> bool:
        """Whether to capture this run of a key without a graph; if not, it counts as a plain
        run."""
        wait = self._waits.get(key, FIRST_WAIT)
        if wait:
            self._wait(key, wait - 1)
        return wait == 0

    def refuse(self, key: Hashable) -> None:
        self._wait(key, math.inf)

    def put(self, key: Hashable, graph: Graph) -> list[Graph]:
        """Returns the evicted graphs."""
        self._graphs[key] = graph
        evicted = [
            self._graphs.popitem(last=False) for _ in range(len(self._graphs) - self._capacity)
        ]
        for old, _ in evicted:
            self._wait(old, LATER_WAIT)
        return [old for _, old in evicted]

    def clear(self) -> list[Graph]:
        """Returns all graphs; their keys are captured again at their next run."""
        graphs = list(self._graphs.values())
        self._graphs.clear()
        return graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def _wait(self, key: Hashable, runs: float) -> None:
        self._waits[key] = runs
        self._waits.move_to_end(key)
        while len(self._waits) > KEYS_PER_GRAPH * self._capacity:
            self._waits.popitem(last=False)
