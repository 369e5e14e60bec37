"""A stand-in for PyNvVideoCodec and its GPU: FFmpeg decodes, and device memory is the host's.

Like NVDEC it takes elementary streams (start codes, nothing from the container), and has one buffer
for all its pictures.
"""

from __future__ import annotations

import ctypes
import enum
import types
from dataclasses import replace

import av
import numpy as np

from vicort.runtime.devices.cuda import DeviceArray
from vicort.runtime.devices.surface import Surface
from vicort.runtime.errors import DeviceError

FFMPEG_NAMES = {
    "H264": "h264",
    "HEVC": "hevc",
    "VP8": "vp8",
    "VP9": "vp9",
    "AV1": "libdav1d",
    "MPEG2": "mpeg2video",
}


class View:
    def __init__(self, array: np.ndarray, strides: list[int] | None = None) -> None:
        self._array = array
        self.__cuda_array_interface__ = {
            "shape": list(array.shape),
            "strides": list(strides or array.strides),
            "typestr": "|u1",
            "data": (array.ctypes.data, False),
        }


class StandIn(types.ModuleType):
    """What nvdec.py uses of PyNvVideoCodec; `able`, `gaps`, `fails_at` and `sync_fails` make it
    unable."""

    class PyNvVCException(Exception):
        pass

    class PyNvVCExceptionUnsupported(Exception):
        pass

    cudaVideoCodec = enum.Enum("cudaVideoCodec", list(FFMPEG_NAMES))
    OutputColorType = enum.Enum("OutputColorType", "NATIVE RGB RGBP")
    DisplayDecodeLatencyType = enum.Enum("DisplayDecodeLatencyType", "NATIVE LOW ZERO")
    Pixel_Format = enum.Enum("Pixel_Format", "NV12 P016")
    VideoPacketFlag = enum.IntEnum(
        "VideoPacketFlag", {"ENDOFSTREAM": 1, "TIMESTAMP": 2, "DISCONTINUITY": 4, "ENDOFPICTURE": 8}
    )

    def __init__(self) -> None:
        super().__init__("PyNvVideoCodec")
        self.able = {"num_decoder_engines": 1, "width_max": 4096, "height_max": 4096}
        self.gaps = False
        self.fails_at = -1  # number of the packet
        self.sync_fails = False
        self.flags: list[int] = []  # of the packets
        self.latency = self.pixel_format = None

    def GetDecoderCaps(self, gpuid, codec):
        return self.able

    def PacketData(self):
        return types.SimpleNamespace(bsl=0, bsl_data=0, pts=0, decode_flag=0)

    def CreateDecoder(self, *, gpuid, codec, usedevicememory, outputColorType, latency):
        assert usedevicememory
        assert outputColorType is self.OutputColorType.NATIVE
        self.latency = latency
        return StandInDecoder(self, FFMPEG_NAMES[codec.name])


class StandInDecoder:
    def __init__(self, module: StandIn, codec: str) -> None:
        self._module, self._codec = module, av.CodecContext.create(codec, "r")
        self._codec.thread_count = 1
        self._buffer = np.zeros(1 << 20, np.uint8)
        # parts of the buffer, and what is written there in the end
        self._late: list[tuple[np.ndarray, np.ndarray]] = []
        self._packets = 0

    def SyncOnCUStream(self):
        if self._module.sync_fails:
            raise self._module.PyNvVCException("unknown error")
        for part, pixels in self._late:
            part[:] = pixels
        self._late.clear()

    def Decode(self, entry):
        self._module.flags.append(entry.decode_flag)
        if self._packets == self._module.fails_at:
            self._packets += 1
            raise self._module.PyNvVCException("HW decoder faced error\nand more")
        self._packets += 1
        # with the zeros behind it that decoders read on into
        packet = av.Packet(entry.bsl) if entry.bsl else None
        if packet:
            packet.update(ctypes.string_at(entry.bsl_data, entry.bsl))
            packet.pts = entry.pts
        self._buffer[:] = 0x55  # pictures of the call before are gone
        self._late.clear()
        return [
            self._frame(picture, slot) for slot, picture in enumerate(self._codec.decode(packet))
        ]

    def _frame(self, picture: av.VideoFrame, slot: int):
        height, width = picture.height, picture.width
        whole = self._buffer[slot * height * width * 3 // 2 :][: height * width * 3 // 2]
        self._late.append((whole, picture.to_ndarray(format="nv12").reshape(-1)))
        strides = [width + 256, 1, 1] if self._module.gaps else None
        views = [
            View(whole[: height * width].reshape(height, width, 1), strides),
            View(whole[height * width :].reshape(height // 2, width // 2, 2), strides),
        ]
        pixel_format = self._module.pixel_format or self._module.Pixel_Format.NV12
        return types.SimpleNamespace(
            format=pixel_format, cuda=lambda: views, getPTS=lambda: picture.pts
        )


class HostMemoryGpu:
    """A GPU whose memory is the host's."""

    def __init__(self) -> None:
        self.driver = self
        self.allocated = 0
        self.lost: str | None = None  # what every call then raises

    def create_stream(self, urgent):
        return object()

    def empty(self, shape, dtype, purpose):
        self.allocated += 1
        memory = np.zeros(shape, dtype)
        return DeviceArray(memory, memory.ctypes.data, shape, dtype)

    def copy(self, target, source, size, stream):
        ctypes.memmove(target, source, size)

    def record(self, stream):
        if self.lost:
            raise DeviceError(self.lost)
        return object()

    def synchronize(self, event):
        pass


def on_host(surface: Surface) -> Surface:
    """The same surface, in arrays."""
    planes = [np.array(plane.array.memory) for plane in (surface.luma, surface.chroma)]
    return replace(surface, luma=planes[0], chroma=planes[1])
