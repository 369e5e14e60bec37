"""Memory pools of captured graphs: lent to one owner after another, and never destroyed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class CapturePools:
    """PyTorch aborts the process if a `torch.cuda.MemPool` is destroyed while any stream captures,
    and when an object is destroyed is for the garbage collector to say. So a pool goes back on the
    shelf when its owner is gone, and the shelf is kept as long as the process.
    """

    def __init__(self) -> None:
        self._free: list[Any] = []

    def lend(self, owner: object, make: Callable[[], Any]) -> Any:
        """A pool that no other living owner has; `make` makes one where none is free."""
        try:
            pool = self._free.pop()
        except IndexError:
            pool = make()
        # At the end of the process nothing has to go back.
        weakref.finalize(owner, self._free.append, pool).atexit = False
        return pool
