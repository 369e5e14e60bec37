"""What 16:9 video costs with a fixed size and black bars, and with sizes that follow the source.

    python -m vicort.benchmarks.studies.aspect --cache build/aspect

One random checkpoint, with the 3B model's heads and fewer and narrower layers, is built in three
ways: letterboxed to 308x308; by the size rule under the same area, all of which is then picture;
and by the rule under an area that gives the picture the width that it has in the letterbox. Frames
come from memory, nothing is dropped, one stage runs after another on one thread. The three take
turns, and CPU time is counted, of all threads of the process.
"""

from __future__ import annotations

import argparse
import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common import machine
from vicort.benchmarks.common.spread import interleaved, spread
from vicort.benchmarks.common.study import finish, with_budget
from vicort.runtime.core import Frame
from vicort.runtime.devices.preprocess import letterbox
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.session import Session

HEIGHT, WIDTH = 720, 1280  # pixels of the video
SIDE = 308  # pixels, of the letterbox
VISION = {
    "depth": 4,
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_heads": 4,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
}
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = {
    "letterbox": ("--image-size", f"{SIDE}x{SIDE}"),
    "rule, same area": ("--max-pixels", str(SIDE**2)),
    # the least whole tokens down that hold the 173 pixels of the letterboxed picture
    "rule, same picture": ("--max-pixels", str(SIDE * 176)),
}


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the engine sets")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=2, help="in a round (default: %(default)s)")
    options = parser.parse_args()
    sets = {name: EngineSet.open(built(options.cache, name)) for name in SIZES}
    frames = [picture(index) for index in range(16)]
    seconds = interleaved(
        {
            name: partial(cpu_seconds, engines, frames, options.chunks)
            for name, engines in sets.items()
        },
        options.rounds,
    )
    count = options.chunks * len(frames)
    rates = {name: [count / each for each in values] for name, values in seconds.items()}
    report: dict[str, Any] = {
        "conditions": machine.conditions() | machine.now(),
        "command": " ".join(sys.argv[1:]),
        "frames": {name: described(engines.manifest.model) for name, engines in sets.items()},
        "frames a CPU second": {name: spread(values) for name, values in rates.items()},
        "against the letterbox, round by round": {
            name: spread(np.divide(values, rates["letterbox"]).tolist())
            for name, values in rates.items()
        },
    }
    return finish(report, options.out)


def built(cache: Path, name: str) -> Path:
    """The engine set of a size, which is built if it is not there."""
    # late: torch takes seconds to load
    from vicort.export import build
    from vicort.export.random_checkpoint import SECTIONS, THETA, config_of, write_random

    checkpoint = write_random(cache / "reduced-3b", config_of(VISION, TEXT, THETA, SECTIONS), SIDE)
    folder = cache / name.replace(", ", "-").replace(" ", "-")
    command = [str(checkpoint), "--backend", "openvino", "--out", str(folder), *SIZES[name]]
    if status := build.main(command):
        raise SystemExit(status)
    return folder


def picture(number: int) -> np.ndarray:
    """[HEIGHT,WIDTH,3] uint8: colour fields that move."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin((x + 7 * number) / 50), np.sin((y - 5 * number) / 70), np.sin((x + y) / 90)]
    return (np.stack(waves, axis=-1) * 127 + 128).astype(np.uint8)


def cpu_seconds(engines: EngineSet, frames: list[np.ndarray], chunks: int) -> float:
    """CPU time of the process for `chunks` chunks, after one that is not counted."""
    system = with_budget("streaming-window", host_mb=0)
    with Session(engines, system, overlap=False, fps="source") as session:

        def push(first: int) -> None:
            for index, image in enumerate(frames, first):
                session.push(Frame(image, Fraction(index, 2), index))

        push(0)
        began = time.process_time()
        for chunk in range(1, chunks + 1):
            push(chunk * len(frames))
        return time.process_time() - began


def described(model: ModelSpec) -> dict[str, Any]:
    """Pixels of a frame and of the picture in it, and visual tokens of a unit."""
    grid = model.grid(HEIGHT, WIDTH)
    height, width = grid.pixels(model.token_pixels)
    box = letterbox(HEIGHT, WIDTH, height, width) if model.fixed_size else None
    shown = (box.height, box.width) if box else (height, width)
    return {
        "frame": f"{width}x{height}",
        "picture": f"{shown[1]}x{shown[0]}",
        "tokens of a unit": grid.tokens,
    }


if __name__ == "__main__":
    sys.exit(main())
