"""Which runs of an engine are CUDA graphs: the first of its shapes and addresses is plain, the
second is captured, all others replay."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

FIRST_WAIT = 1  # plain runs before one is captured
# the same, once a graph had to go: where there are too many keys, capturing must not become the
# main work
LATER_WAIT = 16
KEYS_PER_GRAPH = 16  # that are remembered

Graph = TypeVar("Graph")


class GraphCache(Generic[Graph]):
    """Graphs by key, `most` of them: the least recently used goes first. A key that could not be
    captured is not tried again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        # plain runs to come before a key is captured
        self._waits: OrderedDict[Hashable, float] = OrderedDict()

    def get(self, key: Hashable) -> Graph | None:
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def is_due(self, key: Hashable) -> bool:
        """Whether the run of this key, which has no graph, is to be captured; else it is counted as
        a plain one."""
        wait = self._waits.get(key, FIRST_WAIT)
        if wait:
            self._wait(key, wait - 1)
        return wait == 0

    def refuse(self, key: Hashable) -> None:
        self._wait(key, math.inf)

    def put(self, key: Hashable, graph: Graph) -> list[Graph]:
        """Returns the graphs that had to go."""
        self._graphs[key] = graph
        gone = [self._graphs.popitem(last=False) for _ in range(len(self._graphs) - self._most)]
        for old, _ in gone:
            self._wait(old, LATER_WAIT)
        return [old for _, old in gone]

    def clear(self) -> list[Graph]:
        """Returns the graphs that were there; their keys are captured again at their next run."""
        graphs = list(self._graphs.values())
        self._graphs.clear()
        return graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def _wait(self, key: Hashable, runs: float) -> None:
        self._waits[key] = runs
        self._waits.move_to_end(key)
        while len(self._waits) > KEYS_PER_GRAPH * self._most:
            self._waits.popitem(last=False)
