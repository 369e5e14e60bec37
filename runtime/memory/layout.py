"""How runs of tokens are distributed over pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How runs of tokens, each of a temporal unit or of text, are distributed over pages.

    No page holds tokens of two runs. Runs of 3 and 5 tokens in pages of 4 give
    page = [0, 0, 0, 1, 1, 1, 1, 2], cell = [0, 1, 2, 0, 1, 2, 3, 0], tokens = (3, 4, 1) and
    run = (0, 1, 1).
    """

    page: np.ndarray  # [n] page of each token, 0, 1, …
    cell: np.ndarray  # [n] cell of each token in its page
    tokens: tuple[int, ...]  # of each page: how many tokens it holds
    run: tuple[int, ...]  # of each page: the run that its tokens belong to

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
