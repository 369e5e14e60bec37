"""The stream of the systems' comparison: an H.264 file of the synthetic world, decoded once, then
played from memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from vicort.benchmarks.common.workload import PERIOD, Workload
from vicort.runtime.core import Frame
from vicort.runtime.sources import open_source


@dataclass(frozen=True)
class Recording(Workload):
    """PERIOD decoded frames with the decoder's data; longer streams repeat them with increasing
    times."""

    decoded: tuple[Frame, ...] = field(default=(), repr=False)

    def frame(self, index: int) -> Frame:
        return replace(self.decoded[index % PERIOD], time=Fraction(index, self.fps), index=index)

    def describe(self) -> dict[str, object]:
        source = (
            f"{self.width}x{self.height} H.264, {PERIOD} frames decoded into memory, then repeated"
        )
        return super().describe() | {"source": source}


def write_recording(path: Path) -> None:
    """The stream as a file, unless it is there."""
    if not path.is_file():
        partial = path.with_stem(path.stem + "-partial")
        Workload().encode(partial, PERIOD)
        partial.rename(path)


def read_recording(path: Path, motion: bool = False) -> Recording:
    """motion: whether frames carry the decoder's motion vectors."""
    with open_source(str(path), motion=motion) as source:
        return Recording(decoded=tuple(_all(source)))


def _all(frames: Iterable[Frame]) -> list[Frame]:
    decoded = list(frames)
    if len(decoded) != PERIOD:
        raise ValueError(f"{len(decoded)} frames were decoded, not {PERIOD}")
    return decoded
