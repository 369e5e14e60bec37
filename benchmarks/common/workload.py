"""The stream that is timed: the tiny model's synthetic world, in memory or encoded, and the
questions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from vicort.export.tiny.world import make_stream
from vicort.runtime.core import Frame
from vicort.runtime.policies.drop import ChunkIntra
from vicort.runtime.policies.system import System, load_system

# share of a chunk's visual tokens that are kept: the setting of the published 134 frames a second
# (arXiv 2606.19849)
KEEP = 0.3
CHUNK_FRAMES = 16
QUESTIONS = ("what color was the circle?", "what is there now?", "which came first?")
PERIOD = 160  # frames that are drawn; longer streams repeat them with increasing times
DEVICE_MB, HOST_MB = 1024, 1024  # budgets of systems that are measured
ENCODED_RATE = 25  # frames a second of an encoded clip


@dataclass(frozen=True)
class Workload:
    """Frames of one size, `fps` of them a second, as many as are asked for."""

    width: int = 320  # pixels of a frame before preprocessing
    height: int = 180
    fps: int = 2
    seed: int = 5

    @cached_property
    def images(self) -> tuple[np.ndarray, ...]:
        """PERIOD frames [height, width, 3] uint8."""
        from vicort.export.tiny.painter import Painter  # here, since it imports pillow

        stream = make_stream(
            self.seed, objects=6, aspect=self.width / self.height, lead=1.0, tail=PERIOD / self.fps
        )
        painter = Painter(stream, self.width, self.height)
        return tuple(painter.frame(index / self.fps) for index in range(PERIOD))

    def frame(self, index: int) -> Frame:
        return Frame(self.images[index % PERIOD], Fraction(index, self.fps), index)

    def frames(self, first: int, count: int) -> list[Frame]:
        return [self.frame(index) for index in range(first, first + count)]

    def encode(self, path: Path, frames: int) -> None:
        """The stream as an H.264 file of ENCODED_RATE frames a second: `frames` of them, all to be
        taken."""
        import av  # here, since a machine that only measures engines may lack it

        with av.open(str(path), "w") as container:
            track = container.add_stream(
                "libx264", rate=ENCODED_RATE, options={"preset": "veryfast", "crf": "23"}
            )
            track.width, track.height, track.pix_fmt = self.width, self.height, "yuv420p"
            for index in range(frames):
                container.mux(
                    track.encode(
                        av.VideoFrame.from_ndarray(self.images[index % PERIOD], format="rgb24")
                    )
                )
            container.mux(track.encode())

    def describe(self) -> dict[str, object]:
        return {
            "source": f"{self.width}x{self.height} RGB uint8, {PERIOD} frames drawn, then repeated",
            "fps": self.fps,
            "seed": self.seed,
        }


def bench_system(
    name: str = "vicostream", device_mb: float | None = None, host_mb: float | None = None
) -> System:
    """A system as its YAML has it, but with the fixed-ratio form of the drop where it drops at all:
    equal work at every precision. Its budget does not follow the machine."""
    system = load_system(name)
    if isinstance(system.drop, ChunkIntra):
        system = system.with_(drop=ChunkIntra(keep=KEEP))
    if host_mb is None:
        host_mb = 0 if system.memory.host_mb == 0 else HOST_MB
    return system.with_(memory={"device_mb": device_mb or DEVICE_MB, "host_mb": host_mb})


def describe_system(system: System) -> dict[str, object]:
    """Every setting of a system, under the keys of its YAML file."""
    return system.model_dump(exclude={"about"})
