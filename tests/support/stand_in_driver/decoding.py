"""What the tests have a process on the stand-in do: decode into device memory by NVDEC's stand-in,
and look at the real PyNvVideoCodec."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from support import nvdec
from support.stand_in_driver.engines import HostMemory, stand_in_driver

from vicort.runtime.devices.cuda import open_gpu
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.sources import open_source


class DeviceDecoder(nvdec.StandInDecoder):
    """Its pictures lie in device memory, as NVDEC's do."""

    def __init__(self, module: nvdec.StandIn, codec: str) -> None:
        super().__init__(module, codec)
        size = self._buffer.nbytes
        self._memory = open_gpu().empty((size,), np.uint8)
        self._buffer = HostMemory().array_at(self._memory)


def decoded(path: Path, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures [F,height,width,3] that were decoded on the GPU and on the CPU, and calls that the
    driver refused."""
    nvdec.StandInDecoder = DeviceDecoder  # type: ignore[misc]
    sys.modules["PyNvVideoCodec"] = nvdec.StandIn()
    found = []
    for decode in ("gpu", "cpu"):
        with open_source(str(path), decode=decode) as source:
            images = [frame.image for frame in source]
        if decode == "gpu":
            for image in images:
                for plane in (image.luma, image.chroma):
                    plane.array.memory = HostMemory().array_at(plane.array)
            images = [nvdec.on_host(image) for image in images]
        out = np.empty((len(images), height, width, 3), np.uint8)
        Preprocessor(height, width)(images, out)
        found.append(out)
    return found[0], found[1], stand_in_driver().refusals()


def real_module(libraries: str) -> dict[str, Any]:
    """Names of the real PyNvVideoCodec: members of its enumerations, and the signatures of what
    nvdec.py calls. libraries: a folder with a library of the name that it looks for."""
    sys.setdlopenflags(os.RTLD_LAZY)  # it asks the driver for more than the stand-in has
    ctypes.CDLL(f"{libraries}/libnvidia-encode.so.1", mode=ctypes.RTLD_GLOBAL)
    module: ModuleType = importlib.import_module("PyNvVideoCodec")
    owners = {
        "CreateDecoder": module,
        "GetDecoderCaps": module,
        "Decode": module.PyNvDecoder,
        "SyncOnCUStream": module.PyNvDecoder,
        "cuda": module.DecodedFrame,
        "getPTS": module.DecodedFrame,
    }
    members = {
        name: list(value.__members__)
        for name, value in vars(module).items()
        if hasattr(value, "__members__")
    }
    return {
        "members": members,
        "signatures": {name: getattr(owner, name).__doc__ for name, owner in owners.items()},
        "attributes": sorted({*dir(module.PacketData()), *dir(module.DecodedFrame)}),
        "errors": [
            issubclass(getattr(module, name), Exception)
            for name in ("PyNvVCException", "PyNvVCExceptionUnsupported")
        ],
    }
