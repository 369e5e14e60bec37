"""Training data: encoded, decoded and split into units in advance, because drawing and coding cost
more than a training step.

A reel is one encoded stream of seven things. The pool is a folder of reels: `fill_pool` may write
it while training reads it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vicort.export.tiny.video import read_units, write_video
from vicort.export.tiny.world import Thing, ThingStream, make_stream
from vicort.runtime.core import UNIT_FRAMES

SHAPES_OF_FRAMES = ((1, 1), (4, 3), (16, 9), (3, 4), (9, 16), (2, 1))
HEIGHTS = (112, 128, 160, 192, 240, 288, 360)  # pixels, of the shorter side


@dataclass(frozen=True)
class Reel:
    units: np.ndarray  # [U, 2, 112, 112, 3] uint8
    there: np.ndarray  # [U, 2] int16: index of the thing in each frame, -1 = none
    things: tuple[Thing, ...]


def make_reel(seed: int) -> Reel:
    """A stream through a real H.264 file of random size, frame rate and quality, sampled at 2
    frames a second from a random moment on."""
    rng = np.random.default_rng([seed, 10])
    wide, high = _frame_shape(rng)
    side = int(rng.choice(HEIGHTS, p=np.array([8, 6, 4, 3, 2, 1, 1]) / 25))
    size = side * wide // min(wide, high) // 2 * 2, side * high // min(wide, high) // 2 * 2
    lead, tail = rng.uniform(0, 3, 2)
    stream = make_stream(seed, 7, size[0] / size[1], lead, tail, stay=(1.2, 4.5), gap=(0.0, 1.5))
    options = {
        "crf": str(rng.integers(18, 41)),
        "preset": str(rng.choice(["ultrafast", "veryfast", "medium"])),
    }
    phase = float(rng.choice([0.0, 0.25]))
    shift = tuple(rng.uniform(0, 1, 2)) if rng.random() < 0.3 else (0.5, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reel.mp4"
        write_video(path, stream, size, fps=int(rng.choice([4, 4, 8])), options=options)
        units, times = read_units(path, phase=phase, shift=shift)
    return Reel(units, labels(stream, [float(time) for time in times]), stream.things)


def is_square(seed: int) -> bool:
    """Whether the frames of this reel are square, so that things have their maximum size."""
    return _frame_shape(np.random.default_rng([seed, 10])) == (1, 1)


def _frame_shape(rng: np.random.Generator) -> tuple[int, int]:
    return SHAPES_OF_FRAMES[rng.integers(len(SHAPES_OF_FRAMES))]


def labels(stream: ThingStream, times: list[float]) -> np.ndarray:
    """[U, 2] int16: index of the thing in each frame, -1 = none. times: of the 2 U frames, in
    seconds."""
    shown = [stream.at(time) for time in times]
    return np.array(
        [-1 if thing is None else stream.things.index(thing) for thing in shown], np.int16
    ).reshape(-1, UNIT_FRAMES)


def fill_pool(folder: Path, first: int, count: int) -> None:
    """Write reels `first` to `first + count - 1`, atomically, one file each. Existing files are
    kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        path = folder / f"{seed:06}.npz"
        if path.exists():
            continue
        reel = make_reel(seed)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                units=reel.units,
                there=reel.there,
                things=json.dumps([asdict(thing) for thing in reel.things]),
            )
        partial.rename(path)


def load_reel(path: Path) -> Reel:
    """Read a reel that `fill_pool` wrote."""
    with np.load(path) as file:
        things = tuple(Thing(**fields) for fields in json.loads(str(file["things"])))
        return Reel(file["units"], file["there"], things)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    fill_pool(arguments.folder, arguments.first, arguments.count)


if __name__ == "__main__":
    main()
