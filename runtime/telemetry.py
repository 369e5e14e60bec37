"""Switches off what the libraries would send about their use, whatever the environment says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# onnxruntime reads it while it is loaded, and then neither sends nor stores anything for the life
# of the process
ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
# OpenVINO and NNCF send through this package, and have a stub of their own where it is missing
OPENVINO = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Every import of onnxruntime, OpenVINO and of what imports them is made within this context.

    Module table and environment are afterwards as before. A library that the program itself
    imported earlier is left as it is.
    """
    hidden = {name: sys.modules[name] for name in list(sys.modules) if _is_openvino(name)}
    said = os.environ.get(ONNXRUNTIME)
    for name in hidden:
        del sys.modules[name]
    sys.modules[OPENVINO] = None  # type: ignore[assignment]  # an import of it raises ImportError
    os.environ[ONNXRUNTIME] = "1"
    try:
        yield
    finally:
        del sys.modules[OPENVINO]
        sys.modules.update(hidden)
        if said is None:
            del os.environ[ONNXRUNTIME]
        else:
            os.environ[ONNXRUNTIME] = said


def _is_openvino(name: str) -> bool:
    return name == OPENVINO or name.startswith(f"{OPENVINO}.")
