"""Decodes video with NVDEC, through PyNvVideoCodec. The pixels stay in GPU memory.

PyAV reads the container, as on the CPU, so that times, gaps and truncated files are handled in the
same way. NVDEC conceals damage inside a packet without reporting it.
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
from vicort.runtime.sources.hdr import HLG, PQ
from vicort.runtime.sources.pixel_shape import PixelShape, square_size
from vicort.runtime.sources.pixels import UNSPECIFIED, display_matrix, matrix_of

if TYPE_CHECKING:
    from vicort.runtime.devices.cuda.arrays import DeviceArray
    from vicort.runtime.devices.cuda.gpu import Gpu

MODULE, PIN = "PyNvVideoCodec", "PyNvVideoCodec==2.2.4"
# FFmpeg's name -> NVDEC's name
CODECS = {
    "h264": "H264",
    "hevc": "HEVC",
    "vp8": "VP8",
    "vp9": "VP9",
    "av1": "AV1",
    "mpeg2video": "MPEG2",
}
FORMATS = ("yuv420p", "yuvj420p", "nv12")  # decoded as NV12; yuvj420p has full range
# bitstream filters that insert start codes, which NVDEC needs and MP4 and Matroska leave out
START_CODES = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
LUMA_WEIGHTS = {  # FFmpeg's number of a colour matrix -> Kr, Kb (ITU-T H.273)
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}
DEFAULT_LUMA_WEIGHTS = (0.299, 0.114)  # BT.601
FULL_RANGE = 2  # FFmpeg's number
MAX_PENDING = 256  # packets in the decoder


class NvdecUnavailable(Exception):
    """The stream cannot be decoded on the GPU. The text holds the reason and the advice."""


@dataclass(frozen=True)
class DisplayFormat:
    """Colours and orientation of the pictures of a stream, taken from the first one."""

    to_rgb: np.ndarray  # colour matrix, see devices.surface
    quarters: int  # quarter turns counter-clockwise, after mirroring
    mirrored: bool  # left and right
    pixel_shape: Fraction = Fraction(1)  # width of a stored pixel over its height

    @classmethod
    def of(cls, picture: av.VideoFrame, pixel_shape: Fraction) -> DisplayFormat:
        full = picture.color_range == FULL_RANGE or picture.format.name == "yuvj420p"
        quarters, mirrored = turns(display_matrix(picture))
        colours = int(picture.colorspace)
        if colours == UNSPECIFIED:
            colours = matrix_of(picture.height, picture.width)
        return cls(
            to_rgb(*LUMA_WEIGHTS.get(colours, DEFAULT_LUMA_WEIGHTS), full),
            quarters,
            mirrored,
            pixel_shape,
        )


@dataclass(frozen=True)
class Picture:
    """A decoded picture in the decoder's memory, valid until the next packet is decoded. Times are
    as in PyAV."""

    planes: tuple[Any, Any]  # luma, chroma, each with a __cuda_array_interface__
    display: DisplayFormat
    pts: int | None
    time_base: Fraction | None
    is_corrupt: bool
    dts: int | None = None


def turns(matrix: np.ndarray | None) -> tuple[int, bool]:
    """Returns (quarter turns counter-clockwise, whether to mirror left and right before that) for a
    display matrix, with the same result as `pixels.upright`."""
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

    The first pictures are also decoded on the CPU, until one yields the colour matrix, the
    orientation and the shape of pixels. All are assumed not to change.
    """

    keeps = False

    def __init__(self, source: ContainerSource, ordinal: int = 0) -> None:
        """Raises NvdecUnavailable if the module, the GPU or the codec is missing."""
        self._nvc = load_module()
        self._stream = source.video
        self._name = source.name
        codec = self._checked_codec(ordinal)
        self._memory = SurfaceMemory(ordinal)
        latency = self._nvc.DisplayDecodeLatencyType
        # each packet is one whole picture, which is returned without delay
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
        self._display: DisplayFormat | None = None
        self._pixel_shape = PixelShape(self._stream)
        self._waiting: deque[av.Packet] = deque()  # packets that wait for the display format
        # packet number -> timestamp, time base, is_corrupt, of packets in the decoder
        self._pending: dict[int, tuple[int | None, Fraction | None, bool]] = {}
        self._number = 0
        self._good = False  # whether a picture came out

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return (RuntimeError, self._nvc.PyNvVCException, self._nvc.PyNvVCExceptionUnsupported)

    @property
    def _codec_name(self) -> str:
        """FFmpeg's name of the codec, for any of its decoders."""
        return self._stream.codec_context.codec.canonical_name

    def _checked_codec(self, ordinal: int) -> Any:
        context, name = self._stream.codec_context, self._codec_name
        if name not in CODECS:
            raise NvdecUnavailable(
                f"{name} is not one of {', '.join(CODECS)}: convert it to one of them"
            )
        if context.pix_fmt not in FORMATS:
            raise NvdecUnavailable(
                f"its pictures are {context.pix_fmt}, and only 8-bit 4:2:0 is supported: convert "
                "it with `-pix_fmt yuv420p`"
            )
        if context.color_trc in (PQ, HLG):
            raise NvdecUnavailable("it is HDR, which only the CPU maps to ordinary colours")
        codec = getattr(self._nvc.cudaVideoCodec, CODECS[name])
        try:
            able = self._nvc.GetDecoderCaps(gpuid=ordinal, codec=codec)
        except self._errors as error:
            raise NvdecUnavailable(
                f"NVDEC does not start ({_first_line(error)}): see `nvidia-smi`"
            ) from error
        if not able["num_decoder_engines"]:
            raise NvdecUnavailable(f"this GPU has no decoder for {name}: convert it to h264")
        if context.width > able["width_max"] or context.height > able["height_max"]:
            largest = f"{able['width_max']}x{able['height_max']}"
            raise NvdecUnavailable(
                f"it is {context.width}x{context.height}, and this GPU decodes at most {largest} "
                f"of {name}: make it smaller"
            )
        return codec

    def decode(self, packet: av.Packet | None) -> Iterator[Picture]:
        data = packet if packet is not None and packet.size else None
        if data is not None:
            self._waiting.append(data)
        self._display = display = self._display or self._first_display(data)
        if display is None:
            return  # wait for the next packet
        while self._waiting:
            yield from self._pictures(self._waiting.popleft(), display)
        if data is None:
            yield from self._pictures(None, display)

    def convert(self, picture: Picture) -> Surface:
        """Copy the picture to a new surface. Raises DeviceError where the GPU fails."""
        try:
            self._decoder.SyncOnCUStream()  # the decoder copies on its own stream
        except self._errors as error:
            self._memory.check_gpu()
            raise self._undecodable(error) from error
        for plane in picture.planes:
            self._check_rows(plane)
        luma, chroma = (self._memory.copied(plane) for plane in picture.planes)
        display = picture.display
        height, width = luma.shape[:2]
        size = square_size(height, width, display.pixel_shape)
        return Surface(luma, chroma, display.to_rgb, display.quarters, display.mirrored, size)

    def _check_rows(self, plane: Any) -> None:
        """Raises SourceError for rows of a plane that do not follow one another."""
        interface = plane.__cuda_array_interface__
        shape, strides = tuple(int(size) for size in interface["shape"]), interface.get("strides")
        if not _is_compact(shape, strides):
            raise SourceError(
                f"{self._name}: NVDEC leaves gaps between rows {strides}: decode on the CPU with "
                "`--decode cpu`"
            )

    def _undecodable(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self._name} cannot be decoded on the GPU ({_first_line(error)}): use `--decode cpu`"
        )

    def _first_display(self, packet: av.Packet | None) -> DisplayFormat | None:
        try:
            pictures = self._stream.decode(packet)
        except av.FFmpegError:
            return None  # try the next packet
        return DisplayFormat.of(pictures[0], self._pixel_shape.now) if pictures else None

    def _pictures(self, packet: av.Packet | None, display: DisplayFormat) -> Iterator[Picture]:
        """The pictures of one packet; None flushes the decoder."""
        number = self._register(packet)  # before the filter takes ownership of the packet
        pieces = [packet] if self._filter is None or packet is None else self._filter.filter(packet)
        for piece in pieces:
            for frame in self._decoded(piece, number):
                self._good = True
                yield self._picture(frame, display)

    def _decoded(self, piece: av.Packet | None, number: int) -> list[Any]:
        data = b"" if piece is None else bytes(piece)
        buffer = np.frombuffer(data, np.uint8)  # keeps the bytes alive while the decoder reads them
        entry = self._nvc.PacketData()
        entry.bsl = len(data)
        entry.bsl_data = buffer.ctypes.data if data else 0
        entry.pts = number
        if self._low_latency and data:
            entry.decode_flag = int(self._nvc.VideoPacketFlag.ENDOFPICTURE)
        try:
            return self._decoder.Decode(entry)
        except self._errors as error:
            self._memory.check_gpu()  # no packet is to blame for one that fails
            if self._good:
                raise Damaged(_first_line(error)) from error
            raise self._undecodable(error) from error

    def _register(self, packet: av.Packet | None) -> int:
        """Number a packet. The decoder returns the number with the picture; a timestamp may be
        missing or repeated."""
        self._number += 1
        if packet is not None:
            stamp = packet.dts if packet.pts is None else packet.pts
            self._pending[self._number] = (stamp, packet.time_base, packet.is_corrupt)
        # packets without a picture are never returned
        self._pending.pop(self._number - MAX_PENDING, None)
        return self._number

    def _picture(self, frame: Any, display: DisplayFormat) -> Picture:
        if frame.format != self._nvc.Pixel_Format.NV12:
            raise SourceError(
                f"{self._name} changes to {frame.format}, and only NV12 is supported: use "
                "`--decode cpu`"
            )
        luma, chroma = frame.cuda()
        stamp, time_base, corrupt = self._pending.pop(frame.getPTS(), (None, None, False))
        return Picture((luma, chroma), display, stamp, time_base, corrupt)


class Plane:
    """[height, width, channels] uint8 in GPU memory, with CUDA's array interface."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.shape = array.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.array.pointer, False),
            "version": 3,
        }


class SurfaceMemory:
    """Copies decoded planes to GPU memory that the caching allocator reuses."""

    def __init__(self, ordinal: int) -> None:
        """Raises NvdecUnavailable if there is no such GPU."""
        from vicort.runtime.devices.cuda import open_gpu

        try:
            self._gpu: Gpu = open_gpu(ordinal)
            self._raw = self._gpu.driver.create_stream(False)
        except DeviceError as error:
            raise NvdecUnavailable(str(error)) from error

    def copied(self, plane: Any) -> Plane:
        """Copy a plane without gaps and wait for the copy, so that any stream may read it. Raises
        DeviceError."""
        interface, driver = plane.__cuda_array_interface__, self._gpu.driver
        shape = tuple(int(size) for size in interface["shape"])
        array = self._gpu.empty(shape, np.uint8, "a decoded picture")
        driver.copy(array.pointer, interface["data"][0], array.nbytes, self._raw)
        self.check_gpu()
        return Plane(array)

    def check_gpu(self) -> None:
        """Wait for the work of this stream. Raises DeviceError if the GPU fails."""
        self._gpu.driver.synchronize(self._gpu.driver.record(self._raw))


def _is_compact(shape: tuple[int, ...], strides: Any) -> bool:
    if strides is None:
        return True
    compact = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return all(
        size == 1 or int(stride) == wanted
        for size, stride, wanted in zip(shape, strides, compact, strict=True)
    )


def load_module() -> Any:
    """Import PyNvVideoCodec. Raises NvdecUnavailable if it is not installed or does not load; it
    needs the driver's video libraries."""
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        raise NvdecUnavailable(f"{MODULE} is not installed: `pip install {PIN}`") from error
    except Exception as error:  # its own RuntimeError, ImportError of a library, …
        needed = (
            "NVIDIA's driver with its video libraries (in containers "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        )
        raise NvdecUnavailable(
            f"{MODULE} does not load ({_first_line(error)}): install {needed}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
