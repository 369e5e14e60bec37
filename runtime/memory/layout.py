"""How runs of tokens fall into pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How runs of tokens, each of a temporal unit or a stretch of text, fall into pages: no page
    holds tokens of two runs."""

    page: np.ndarray  # [n] page of each token, 0, 1, …
    cell: np.ndarray  # [n] its cell there
    tokens: tuple[int, ...]  # of each page: how many it holds
    run: tuple[int, ...]  # of each page: whose tokens

    @staticmethod
    def of(lengths: Sequence[int], page_tokens: int) -> Layout:
        """lengths: tokens of each run; a run without tokens gets no page."""
        pages = [
            (run, min(page_tokens, length - first))
            for run, length in enumerate(lengths)
            for first in range(0, length, page_tokens)
        ]
        tokens = tuple(held for _, held in pages)
        page = np.repeat(np.arange(len(pages)), tokens)
        cell = np.concatenate([np.arange(held) for held in tokens]) if tokens else np.empty(0, int)
        return Layout(page, cell, tokens, tuple(run for run, _ in pages))
