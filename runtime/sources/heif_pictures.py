"""The main picture of an AVIF or HEIF file, joined from its tiles and laid over white where it is
transparent."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vicort.runtime.errors import SourceError
from vicort.runtime.sources.heif_items import HeifItem, MainPicture
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.pixels import Converter, over_white


class HeifDecoder:
    """Decodes items of an open container, whose streams have the ids of items."""

    def __init__(self, container: av.container.InputContainer, limits: Limits, name: str) -> None:
        """name: of the file, for errors."""
        self._container = container
        self._limits = limits
        self._name = name
        self._streams = {stream.id: stream for stream in container.streams.video}
        self._reformatter = VideoReformatter()

    def knows(self, main: MainPicture) -> bool:
        """Whether FFmpeg shows the parts of its colours, which may be derived in other ways."""
        return all(each in self._streams for each in _coded(main.colours))

    def picture(self, main: MainPicture) -> np.ndarray:
        """-> [height, width, 3] uint8 RGB, as people see it. Raises SourceError, and errors of
        FFmpeg."""
        colours = main.colours
        self._check(colours)
        needed = {*_coded(colours), *(_coded(main.alpha) if main.alpha else ())}
        pictures = self._decoded(needed)
        convert = Converter(still=True)
        image = _joined(colours, {each: convert.stored(pictures[each]) for each in _coded(colours)})
        if main.alpha:
            self._check(main.alpha)
            rows, columns = image.shape[:2]
            alpha = _joined(
                main.alpha, {each: self._grey(pictures[each]) for each in _coded(main.alpha)}
            )
            if alpha.shape[:2] != (rows, columns):
                alpha = self._resized(alpha, rows, columns)
            image = over_white(np.dstack([image, alpha[..., 0]]))
        height, width = image.shape[:2]
        image = colours.crop.of(image, height, width)
        for kind, value in colours.turns:
            image = np.rot90(image, value) if kind == "irot" else image[:: 1 if value else -1]
            if kind == "imir" and value:
                image = image[:, ::-1]
        return np.ascontiguousarray(image)

    def _check(self, item: HeifItem) -> None:
        for each in _coded(item):
            stream = self._streams.get(each)
            if stream is None or stream.codec_context is None:
                raise SourceError("a part of it has an unknown codec")
            self._limits.check(self._name, stream.width, stream.height, None)
        if item.grid:
            self._limits.check(self._name, item.grid.width, item.grid.height, None)

    def _decoded(self, items: set[int]) -> dict[int, av.VideoFrame]:
        """Raises SourceError if one is missing."""
        found: dict[int, av.VideoFrame] = {}
        wanted = [self._streams[each] for each in items]
        for stream in wanted:
            stream.codec_context.options = self._limits.decoder_options
            stream.codec_context.thread_count = 1
        for packet in self._container.demux(wanted):
            for picture in packet.stream.decode(packet):
                if not self._limits.allows(picture.width, picture.height):
                    raise SourceError("a part of it is larger than declared")
                found.setdefault(packet.stream.id, picture)
        if missing := items - found.keys():
            raise SourceError(f"{len(missing)} of its {len(items)} parts cannot be decoded")
        return found

    def _grey(self, picture: av.VideoFrame) -> np.ndarray:
        """-> [height, width, 1] uint8"""
        return self._reformatter.reformat(picture, format="gray").to_ndarray()[..., None]

    def _resized(self, alpha: np.ndarray, rows: int, columns: int) -> np.ndarray:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(alpha[..., 0]), format="gray")
        resized = self._reformatter.reformat(picture, columns, rows, format="gray", threads=1)
        return resized.to_ndarray()[..., None]


def _coded(item: HeifItem) -> tuple[int, ...]:
    """The items that hold its pixels."""
    return item.grid.tiles if item.grid else (item.id,)


def _joined(item: HeifItem, parts: dict[int, np.ndarray]) -> np.ndarray:
    """Raises SourceError for tiles that do not cover the whole."""
    grid = item.grid
    if grid is None:
        return parts[item.id]
    first = parts[grid.tiles[0]]
    height, width, channels = first.shape
    fits = grid.rows * height >= grid.height and grid.columns * width >= grid.width
    if not fits or any(parts[tile].shape != first.shape for tile in grid.tiles):
        raise SourceError("its tiles do not cover it")
    whole = np.empty((grid.height, grid.width, channels), np.uint8)
    for place, tile in enumerate(grid.tiles):
        top, left = place // grid.columns * height, place % grid.columns * width
        room = whole[top : top + height, left : left + width]
        room[...] = parts[tile][: room.shape[0], : room.shape[1]]
    return whole
