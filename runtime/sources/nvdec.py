"""Video decoded by a GPU's own video engine (NVDEC), with PyNvVideoCodec; the pixels stay in the
GPU's memory.

PyAV reads the container, as for the CPU, so that times, gaps and cut-off files are told in the same
way; what is damaged inside a packet NVDEC patches without a word. Never run on a GPU here.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from vicort.runtime.devices.surface import Surface, to_rgb
from vicort.runtime.errors import DeviceError, SourceError
from vicort.runtime.sources.container import ContainerSource, Damaged
from vicort.runtime.sources.pixels import side_data

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.arrays import DeviceArray
    from vicort.runtime.devices.cuda.gpu import Gpu

MODULE, PIN = "PyNvVideoCodec", "PyNvVideoCodec==2.2.4"
# FFmpeg's name, NVDEC's
CODECS = {
    "h264": "H264",
    "hevc": "HEVC",
    "vp8": "VP8",
    "vp9": "VP9",
    "av1": "AV1",
    "mpeg2video": "MPEG2",
}
FORMATS = ("yuv420p", "yuvj420p", "nv12")  # what becomes NV12; the j says full range
# NVDEC finds pictures by them, MP4 and Matroska leave them out
START_CODES = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
SHARES = {  # FFmpeg's number of a colour matrix: Kr and Kb
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}
USUAL_SHARES = (0.299, 0.114)  # BT.601, also where a stream does not say, as for the CPU
FULL_RANGE = 2  # FFmpeg's number
MAX_PENDING = 256  # packets that may be under way in the decoder


class NvdecUnavailable(Exception):
    """Why this stream cannot be decoded on the GPU, and what to do."""


@dataclass(frozen=True)
class Look:
    """How the pictures of a stream are to be shown: its first one, decoded on the CPU, tells."""

    to_rgb: np.ndarray
    quarters: int
    mirrored: bool

    @classmethod
    def of(cls, picture: av.VideoFrame) -> Look:
        full = picture.color_range == FULL_RANGE or picture.format.name == "yuvj420p"
        try:
            matrix = side_data(picture, "DISPLAYMATRIX")
        except ValueError:  # as in pixels.py
            matrix = None
        quarters, mirrored = turns(
            None if matrix is None else np.frombuffer(bytes(matrix), np.int32)
        )
        return cls(
            to_rgb(*SHARES.get(int(picture.colorspace), USUAL_SHARES), full), quarters, mirrored
        )


@dataclass(frozen=True)
class Picture:
    """A decoded picture in the decoder's own memory, good until the next packet goes in. Times as
    PyAV has them."""

    planes: tuple[Any, Any]  # luma, chroma, each with a __cuda_array_interface__
    look: Look
    pts: int | None
    time_base: Fraction | None
    is_corrupt: bool
    dts: int | None = None


def turns(matrix: np.ndarray | None) -> tuple[int, bool]:
    """Mirror left and right, or not, then so many quarter turns counter-clockwise: what
    `pixels.upright` does with that display matrix."""
    if matrix is None:
        return 0, False
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) < abs(b):
        return {
            (False, True): (1, False),
            (True, False): (3, False),
            (False, False): (1, True),
            (True, True): (3, True),
        }[c < 0, b < 0]
    return {
        (False, False): (0, False),
        (True, True): (2, False),
        (True, False): (0, True),
        (False, True): (2, True),
    }[a < 0, d < 0]


class NvdecDecoder:
    """A `Decoder` on the GPU.

    The first pictures are decoded on the CPU as well, until one tells the colour matrix and the
    turn, which are taken to stay.
    """

    def __init__(self, source: ContainerSource, ordinal: int = 0) -> None:
        """Raises NvdecUnavailable if the module, the GPU or the codec is not there."""
        self._nvc = load_module()
        self._stream, self._name = source.video, source.name
        codec = self._checked_codec(ordinal)
        self._memory = SurfaceMemory(ordinal)
        latency = self._nvc.DisplayDecodeLatencyType
        # each packet is a whole picture, and is shown as soon as its turn comes
        self._low_latency = source.live
        try:
            self._decoder = self._nvc.CreateDecoder(
                gpuid=ordinal,
                codec=codec,
                usedevicememory=True,
                outputColorType=self._nvc.OutputColorType.NATIVE,
                latency=latency.LOW if source.live else latency.NATIVE,
            )
        except self._errors as error:
            raise NvdecUnavailable(
                f"NVDEC does not start ({_first_line(error)}): see `nvidia-smi`"
            ) from error
        filter_name = START_CODES.get(self._codec_name)
        self._filter = BitStreamFilterContext(filter_name, self._stream) if filter_name else None
        self._look: Look | None = None
        self._held: deque[av.Packet] = deque()  # packets that wait until the look is known
        # of packets in the decoder, by number
        self._under_way: dict[int, tuple[int | None, Fraction | None, bool]] = {}
        self._number = 0
        self._good = False  # whether a picture came out

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return (RuntimeError, self._nvc.PyNvVCException, self._nvc.PyNvVCExceptionUnsupported)

    @property
    def _codec_name(self) -> str:
        """FFmpeg's name of the codec, whichever decoder of it is used."""
        return self._stream.codec_context.codec.canonical_name

    def _checked_codec(self, ordinal: int) -> Any:
        context, name = self._stream.codec_context, self._codec_name
        if name not in CODECS:
            raise NvdecUnavailable(
                f"{name} is none of {', '.join(CODECS)}: convert it to one of them"
            )
        if context.pix_fmt not in FORMATS:
            raise NvdecUnavailable(
                f"its pictures are {context.pix_fmt}, and only 4:2:0 of 8 bits is taken: convert "
                "it with `-pix_fmt yuv420p`"
            )
        codec = getattr(self._nvc.cudaVideoCodec, CODECS[name])
        try:
            able = self._nvc.GetDecoderCaps(gpuid=ordinal, codec=codec)
        except self._errors as error:
            raise NvdecUnavailable(
                f"NVDEC does not start ({_first_line(error)}): see `nvidia-smi`"
            ) from error
        if not able["num_decoder_engines"]:
            raise NvdecUnavailable(f"this GPU has no decoder of {name}: convert it to h264")
        if context.width > able["width_max"] or context.height > able["height_max"]:
            most = f"{able['width_max']}x{able['height_max']}"
            raise NvdecUnavailable(
                f"it is {context.width}x{context.height}, and this GPU takes {most} of {name}: "
                "make it smaller"
            )
        return codec

    def decode(self, packet: av.Packet | None) -> Iterator[Picture]:
        data = packet if packet is not None and packet.size else None
        if data is not None:
            self._held.append(data)
        self._look = look = self._look or self._first_look(data)
        if look is None:
            return  # what is held waits for the next packet; at the end there was no picture
        while self._held:
            yield from self._pictures(self._held.popleft(), look)
        if data is None:
            yield from self._pictures(None, look)

    def convert(self, picture: Picture) -> Surface:
        """The picture in memory of its own."""
        self._decoder.SyncOnCUStream()  # the decoder copies on a stream of its own
        try:
            luma, chroma = (self._memory.copied(plane) for plane in picture.planes)
        except DeviceError as error:
            raise SourceError(f"{self._name}: {error}") from error
        look = picture.look
        return Surface(luma, chroma, look.to_rgb, look.quarters, look.mirrored)

    def _first_look(self, packet: av.Packet | None) -> Look | None:
        try:
            pictures = self._stream.decode(packet)
        except av.FFmpegError:
            return None  # the next picture will tell
        return Look.of(pictures[0]) if pictures else None

    def _pictures(self, packet: av.Packet | None, look: Look) -> Iterator[Picture]:
        """Of one packet; None = those that are held back."""
        number = self._remember(packet)  # before the filter takes the packet over
        pieces = [packet] if self._filter is None or packet is None else self._filter.filter(packet)
        for piece in pieces:
            for frame in self._decoded(piece, number):
                self._good = True
                yield self._picture(frame, look)

    def _decoded(self, piece: av.Packet | None, number: int) -> list[Any]:
        data = b"" if piece is None else bytes(piece)
        buffer = np.frombuffer(data, np.uint8)  # holds the bytes while the decoder reads them
        entry = self._nvc.PacketData()
        entry.bsl, entry.bsl_data = len(data), buffer.ctypes.data if data else 0
        entry.pts = number
        if self._low_latency and data:
            entry.decode_flag = int(self._nvc.VideoPacketFlag.ENDOFPICTURE)
        try:
            return self._decoder.Decode(entry)
        except self._errors as error:
            if self._good:
                raise Damaged(_first_line(error)) from error
            raise SourceError(
                f"{self._name} cannot be decoded on the GPU ({_first_line(error)}): say "
                "`--decode cpu`"
            ) from error

    def _remember(self, packet: av.Packet | None) -> int:
        """A number for the packet that the decoder gives back with its picture: exact, where a
        timestamp may be missing or repeat."""
        self._number += 1
        if packet is not None:
            stamp = packet.dts if packet.pts is None else packet.pts
            self._under_way[self._number] = (stamp, packet.time_base, packet.is_corrupt)
        # a packet without a picture of its own
        self._under_way.pop(self._number - MAX_PENDING, None)
        return self._number

    def _picture(self, frame: Any, look: Look) -> Picture:
        if frame.format != self._nvc.Pixel_Format.NV12:
            raise SourceError(
                f"{self._name} changes to {frame.format} on the way, and only NV12 is taken: say "
                "`--decode cpu`"
            )
        luma, chroma = frame.cuda()
        stamp, time_base, corrupt = self._under_way.pop(frame.getPTS(), (None, None, False))
        return Picture((luma, chroma), look, stamp, time_base, corrupt)


class Plane:
    """[height, width, channels] uint8 in the GPU's memory, for whoever reads CUDA's array
    interface."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.shape = array, array.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.array.pointer, False),
            "version": 3,
        }


class SurfaceMemory:
    """Copies of decoded planes, in memory that is used again once nobody reads it."""

    def __init__(self, ordinal: int) -> None:
        """Raises NvdecUnavailable if there is no such GPU."""
        from vicort.runtime.devices.cuda import open_gpu

        try:
            self._gpu: Gpu = open_gpu(ordinal)
            self._raw = self._gpu.driver.create_stream(False)
        except DeviceError as error:
            raise NvdecUnavailable(str(error)) from error

    def copied(self, plane: Any) -> Plane:
        """Waits for the copy: whoever reads it on whatever stream finds it there. Raises
        DeviceError."""
        interface, driver = plane.__cuda_array_interface__, self._gpu.driver
        shape = tuple(int(size) for size in interface["shape"])
        if not _is_compact(shape, interface.get("strides")):
            raise DeviceError(
                f"NVDEC leaves gaps between rows {interface['strides']}: decode on the CPU with "
                "`--decode cpu`"
            )
        array = self._gpu.empty(shape, np.uint8, "a decoded picture")
        driver.copy(array.pointer, interface["data"][0], array.nbytes, self._raw)
        driver.synchronize(driver.record(self._raw))
        return Plane(array)


def _is_compact(shape: tuple[int, ...], strides: Any) -> bool:
    if strides is None:
        return True
    compact = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return all(
        size == 1 or int(stride) == wanted
        for size, stride, wanted in zip(shape, strides, compact, strict=True)
    )


def load_module() -> Any:
    """PyNvVideoCodec. Raises NvdecUnavailable if it is not there or does not load: it wants the
    driver's video libraries."""
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        raise NvdecUnavailable(f"{MODULE} is not installed: `pip install {PIN}`") from error
    except Exception as error:  # RuntimeError of its own, ImportError of a library, …
        wants = (
            "NVIDIA's driver with its video libraries (in containers "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        )
        raise NvdecUnavailable(
            f"{MODULE} does not load ({_first_line(error)}): install {wants}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
