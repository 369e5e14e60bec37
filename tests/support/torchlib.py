"""torch.onnx in tests, which export many small graphs: its table of operators, and its log."""

from __future__ import annotations

import functools
import logging
import sys


def parse_torchlib_once() -> None:
    """Let torch.onnx keep its table of operators, which it otherwise parses from the source of 500
    functions at each export: a second and more, of the two that a small graph takes. Without the
    exporter's modules, or where torch keeps the table elsewhere, nothing is changed."""
    if "vicort.export.graphs" not in sys.modules:
        return
    from torch.onnx._internal.exporter import _registration

    table = getattr(_registration, "onnxscript_apis", None)
    read = getattr(table, "get_torchlib_ops", None)
    if read and not hasattr(read, "cache_info"):
        table.get_torchlib_ops = functools.cache(lambda: tuple(read()))


def leave_traces_unwritten() -> None:
    """Let torch write no trace of what it compiles. It writes one where its log of traces has a
    handler, and pytest gives its own handlers to all logs that do not propagate. The reports of
    failed tests then end in thousands of such lines."""
    logging.getLogger("torch.__trace").propagate = True
