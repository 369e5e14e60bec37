"""How many cached tokens a question reads, counted at the language engine for any system."""

from __future__ import annotations

import numpy as np

from vicort.benchmarks.common.observed_engine import is_text
from vicort.runtime.devices.pages import EMPTY


class TokenCounter:
    """Counts the cached tokens that each question's prefill can see. `run` observes a language
    engine on the host (ObservedEngine).

    Only for sessions without overlap, where runs come one after another. A chunk's run has rows of
    features and a run of decoding has one row; what is left is a question's text. Its last run
    before the first decoding step counts: in a second pass it is the second.
    """

    def __init__(self) -> None:
        self._prompt: int | None = None  # tokens of the prompt, whose run is a stream's first
        self._seen: float | None = None  # of the question that is being read
        # of each question, in order: tokens without the prompt's, mean over layers and KV heads
        self.counts: list[float] = []

    def run(self, bindings: dict[str, np.ndarray], began_ns: int) -> None:
        rows = int((bindings["pos"][:, 0] != EMPTY).sum())
        if is_text(bindings) and rows > 1:
            self._text(rows, visible_tokens(bindings["table"][0], bindings["where"]))
        else:
            self.flush()

    def flush(self) -> None:
        """Counts the question that is being read: no more of its prefill comes."""
        if self._seen is not None:
            self.counts.append(self._seen)
            self._seen = None

    def _text(self, rows: int, seen: float) -> None:
        if not seen:
            self.flush()  # a new stream
            self._prompt = rows
        else:
            self._seen = seen - (self._prompt or 0)


def visible_tokens(table: np.ndarray, where: np.ndarray) -> float:
    """Tokens that a run over `table` [L|1, Hkv|1, N] sees in cells `where` [P, L|1, Hkv|1, T, 3]:
    mean over layers and KV heads."""
    layers, heads = (max(table.shape[axis], where.shape[axis + 1]) for axis in (0, 1))
    filled = np.broadcast_to((where[..., 0] != EMPTY).sum(-1), (len(where), layers, heads))
    slots = np.broadcast_to(table, (layers, heads, table.shape[2]))
    layer, head = np.indices((layers, heads))
    counts = filled[np.maximum(slots, 0), layer[..., None], head[..., None]]
    return float(np.where(slots >= 0, counts, 0).sum(-1).mean())
