"""What a forked child must not tear down, because the threads that it belongs to are the parent's.

A child that exits would run destructors and exit functions of onnxruntime and DALI, which wait for
threads that it does not have, or crash.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import weakref
from typing import Any

_parents: weakref.WeakSet[Any] = weakref.WeakSet()
_watching: list[int] = []  # the process in which forks are watched


def leave_to_parent(thing: Any) -> None:
    """Children that are forked from now on never free this object, or what it refers to."""
    _parents.add(thing)
    if not _watching:
        _watching.append(os.getpid())
        os.register_at_fork(after_in_child=_leave)


def _leave() -> None:
    for thing in _parents:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    dali = sys.modules.get("nvidia.dali.pipeline")
    if shut_down := getattr(dali, "_shutdown_pipelines", None):
        atexit.unregister(shut_down)
