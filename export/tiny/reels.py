"""Training data: encoded, decoded and split into units in advance, because drawing and coding cost
more than a training step.

A reel is one encoded stream. The pool is a folder of reels: `fill_pool` may write it while training
reads it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vicort.export.tiny.looks import random_look
from vicort.export.tiny.video import read_units, write_video
from vicort.export.tiny.world import StreamPlan, Thing, ThingStream, make_stream
from vicort.runtime.core import UNIT_FRAMES

AT_ONCE = 2  # things in a frame at most
# shapes of frames and how often they come
FRAMES = {(1, 1): 5, (4, 3): 4, (16, 9): 4, (3, 4): 2, (9, 16): 2, (2, 1): 1, (21, 9): 1, (1, 2): 1}
SIDES = {112: 8, 128: 6, 160: 4, 192: 3, 240: 2, 288: 1, 360: 1, 480: 0.5, 720: 0.2}  # shorter, px
CODECS = {"libx264": 0.7, "mpeg4": 0.15, "mjpeg": 0.15}
MIXED = {"beside": 0.25, "again": 0.15, "growing": 0.25, "covered": 0.1}
PLANS = (  # and how many things
    (StreamPlan(stay=(0.5, 1.6), gap=(0.0, 0.8), touching=0.6, **MIXED), (7, 12)),
    (StreamPlan(stay=(1.0, 4.0), gap=(0.0, 1.5), touching=0.4, **MIXED), (5, 9)),
    (StreamPlan(stay=(2.0, 7.0), gap=(0.0, 1.0), touching=0.4, **MIXED), (3, 6)),
)


@dataclass(frozen=True)
class Reel:
    units: np.ndarray  # [U, 2, 112, 112, 3] uint8
    # [U, 2, 2] int16: indices of the things in each frame, from left to right, -1 = none
    there: np.ndarray
    times: np.ndarray  # [U, 2] float64: seconds of each frame
    things: tuple[Thing, ...]
    aspect: float  # width / height of its frames
    shift: tuple[float, float] = (0.5, 0.5)  # where the frame is between black bars


def make_reel(seed: int) -> Reel:
    """A stream through a real file of random size, frame rate, codec and quality, sampled from a
    random moment on."""
    rng = np.random.default_rng([seed, 11])
    wide, high = _frame_shape(rng)
    side = _drawn(rng, SIDES)
    size = side * wide // min(wide, high) // 2 * 2, side * high // min(wide, high) // 2 * 2
    plan, objects = PLANS[rng.integers(len(PLANS))]
    lead, tail = rng.uniform(0, 3, 2)
    count = int(rng.integers(objects[0], objects[1] + 1))
    stream = make_stream(seed, count, size[0] / size[1], lead, tail, plan)
    codec, fps = _drawn(rng, CODECS), int(rng.choice([4, 4, 8]))
    rate = float(rng.choice([2, 2, 2, 2, 1, 4]))
    phase = float(rng.integers(0, fps)) / fps / rate
    shift = tuple(rng.uniform(0, 1, 2)) if rng.random() < 0.3 else (0.5, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("reel.mkv" if codec == "mjpeg" else "reel.mp4")
        look = random_look(rng, stream.duration)
        options = _quality(rng, codec)
        write_video(path, stream, size, fps=fps, codec=codec, look=look, options=options)
        units, times = read_units(path, fps=rate, phase=phase, shift=shift)
    return Reel(
        units,
        labels(stream, times),
        np.array([float(time) for time in times]).reshape(-1, UNIT_FRAMES),
        stream.things,
        stream.aspect,
        shift,
    )


def _drawn(rng: np.random.Generator, shares: dict):
    """A key, as often as its value says."""
    weights = np.array(list(shares.values()), float)
    return list(shares)[rng.choice(len(shares), p=weights / weights.sum())]


def _quality(rng: np.random.Generator, codec: str) -> dict[str, str]:
    if codec == "libx264":
        return {
            "crf": str(rng.integers(18, 41)),
            "preset": str(rng.choice(["ultrafast", "veryfast", "medium"])),
        }
    return {"qmin": "2", "qmax": str(rng.integers(4, 25)), "flags": "+qscale",
            "global_quality": str(118 * int(rng.integers(2, 16)))}  # fmt: skip


def _frame_shape(rng: np.random.Generator) -> tuple[int, int]:
    return _drawn(rng, FRAMES)


def labels(stream: ThingStream, times: list[Fraction]) -> np.ndarray:
    """[U, 2, 2] int16: indices of the things in each frame from left to right, -1 = none. times: of
    the 2 U frames, in seconds."""
    there = np.full((len(times), AT_ONCE), -1, np.int16)
    for frame, time in enumerate(times):
        for place, thing in enumerate(stream.at(float(time))[:AT_ONCE]):
            there[frame, place] = stream.things.index(thing)
    return there.reshape(-1, UNIT_FRAMES, AT_ONCE)


def fill_pool(folder: Path, first: int, count: int) -> None:
    """Write reels `first` to `first + count - 1`: NUMBER.npy with the units and NUMBER.json with
    the rest, which is written last. Existing reels are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        path = folder / f"{seed:06}.json"
        if not path.exists():
            save_reel(make_reel(seed), path)


def save_reel(reel: Reel, path: Path) -> None:
    """Write a reel; it is complete once `path`, a JSON file, exists."""
    np.save(path.with_suffix(".npy"), reel.units)
    rest = {
        "there": reel.there.tolist(),
        "times": reel.times.tolist(),
        "things": [asdict(thing) for thing in reel.things],
        "aspect": reel.aspect,
        "shift": reel.shift,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(rest))
    partial.rename(path)


def load_reel(path: Path) -> Reel:
    """Read a reel that `save_reel` wrote. Its units stay on the disk until they are used."""
    rest = json.loads(path.read_text())
    return Reel(
        np.load(path.with_suffix(".npy"), mmap_mode="r"),
        np.array(rest["there"], np.int16),
        np.array(rest["times"]),
        tuple(Thing(**fields) for fields in rest["things"]),
        rest["aspect"],
        tuple(rest["shift"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    fill_pool(arguments.folder, arguments.first, arguments.count)


if __name__ == "__main__":
    main()
