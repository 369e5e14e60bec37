"""Ways to read long-term memory with the model's own queries, which an engine gives at the end of a
run, for all layers at once."""

from __future__ import annotations

import numpy as np

from vicort.runtime.core import Page
from vicort.runtime.devices.pages import HostPool
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.protocols import View
from vicort.runtime.memory.long_term.selection import Recall, Selection


class CellReader:
    """Base of the readers: chooses cells with a query, and copies them to the device."""

    def __init__(self, model: ModelSpec, view: View, source: HostPool, recall: Recall) -> None:
        """source: the pool of the long-term memory."""
        self._view = view
        self._source = source
        self._recall = recall
        self._seen: dict[int, Page] = {}  # by temporal unit
        self.selection = Selection.nothing(model)
        self.table = self.selection.cells
        self.reruns = 0

    @property
    def by_words(self) -> bool:
        return False

    @property
    def bytes_moved(self) -> int:
        return self._recall.bytes_moved

    def choose(self, q: np.ndarray) -> None:
        """q: [L, Hq, D] float32."""
        self.selection = self._view.choose(q)
        self.table = self._recall.load(self._source, self.selection)
        self._seen |= {page.unit: page for page in self._view.pages(self.selection)}

    def pages(self) -> list[Page]:
        return [self._seen[unit] for unit in sorted(self._seen)]

    def release(self) -> None:
        self._view.release()


class TwoPass(CellReader):
    """Runs a question's text over recent memory alone, then again with what its queries chose. The
    answer's tokens read that choice too."""

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        if not prefill or self.reruns:
            return False
        self.choose(q)
        has_cells = self.selection.max_cells > 0  # a young stream has nothing to read
        self.reruns += has_cells
        return has_cells


class EachStep(TwoPass):
    """Reads as `TwoPass`, except that each token of the answer reads what the queries of the token
    before it chose."""

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        if prefill:
            return super().must_rerun(q, prefill)
        self.choose(q)
        return False


class ChunkBefore(CellReader):
    """Reads for a chunk what the queries of the chunk before it choose from memory as it is now."""

    _q: np.ndarray | None = None  # [L, Hq, D]

    def must_rerun(self, q: np.ndarray, prefill: bool) -> bool:
        self._q = q.copy()
        return False

    def renew(self, view: View) -> None:
        self._view = view
        self._seen.clear()
        if self._q is not None:
            self.choose(self._q)
