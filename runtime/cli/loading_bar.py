"""Shows on a terminal that engines are being loaded, which takes seconds for a large model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

REFRESHED_EVERY = 0.5  # seconds: the elapsed time goes on while one engine is loaded


@contextmanager
def loading_bar(errors: TextIO) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of the engines loaded so far and of all of them. Nothing is shown if
    `errors` is not a terminal."""
    if not errors.isatty():
        yield lambda loaded, total: None
        return
    from tqdm import tqdm  # late: only on terminals

    with tqdm(desc="loading engines", total=0, unit=" engines", file=errors, leave=False) as bar:

        def show(loaded: int, total: int) -> None:
            bar.total, bar.n = total, loaded
            bar.refresh()

        ended = threading.Event()
        ticker = threading.Thread(target=_refresh, args=(bar, ended), daemon=True)
        ticker.start()
        try:
            yield show
        finally:
            ended.set()
            ticker.join()


def _refresh(bar: tqdm, ended: threading.Event) -> None:
    while not ended.wait(REFRESHED_EVERY):
        bar.refresh()
