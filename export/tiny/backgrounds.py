"""What is there where no thing is: families of backgrounds, still and moving.

Each makes pictures [height, width, 3] of floats, about -1 to 1 around a mean, for any time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.resources import as_file, files

import numpy as np
from PIL import Image

from vicort.runtime.errors import ConfigError
from vicort.runtime.packages import install_command

Picture = Callable[[float], np.ndarray]  # seconds -> [height, width, 3] float32 or float64
PHOTOS = ("astronaut.png", "brick.png", "camera.png", "coffee.png", "grass.png", "coins.png",
          "motorcycle_left.png", "hubble_deep_field.jpg", "page.png", "cell.png",
          "moon.png")  # fmt: skip
HELD_OUT_PHOTOS = ("chelsea.png", "rocket.jpg", "gravel.png", "retina.jpg", "ihc.png", "text.png")


def plain(rng: np.random.Generator, width: int, height: int) -> Picture:
    color = rng.uniform(-0.6, 0.6, 3).astype(np.float32)
    image = np.broadcast_to(color, (height, width, 3)).copy()
    return lambda time: image.copy()


def gradient(rng: np.random.Generator, width: int, height: int) -> Picture:
    """From one colour to another, straight or round, still or slowly turning."""
    x, y = _grid(width, height)
    one, other = rng.uniform(-1, 1, (2, 3)).astype(np.float32)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.choice([0.0, rng.uniform(-0.3, 0.3)])
    middle, is_round = rng.uniform(-0.4, 0.4, 2), rng.random() < 0.4

    def picture(time: float) -> np.ndarray:
        turn = angle + speed * time
        if is_round:
            along = np.hypot(x - middle[0], y - middle[1]) * 1.2
        else:
            along = 0.5 + 0.6 * (np.cos(turn) * x + np.sin(turn) * y)
        share = np.clip(along, 0, 1)[..., None]
        return one + share * (other - one)

    return picture


def blobs(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A few slow waves of colour."""
    x, y = _grid(width, height)
    waves = rng.uniform(-1, 1, (4, 7)).astype(np.float32)

    def picture(time: float) -> np.ndarray:
        image = np.zeros((height, width, 3), np.float32)
        for k, (u, v, phase, speed, *color) in enumerate(waves):
            along = (2 + k) * (u * x + v * y) + 3 * phase + 1.5 * speed * np.float32(time)
            wave = np.sin(along) * np.cos((1 + k) * (v * x - u * y) + np.float32(time) * phase)
            image += wave[:, :, None] * np.asarray(color, np.float32) * 0.6
        return image

    return picture


def clouds(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Noise of several sizes, still or drifting."""
    side = int(1.5 * max(width, height))
    image = np.zeros((side, side, 3), np.float32)
    for cells in rng.choice([3, 5, 9, 17, 33], 3, replace=False):
        grain = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        image += _stretched(grain, side, side) * float(cells) ** -0.25
    drift = rng.uniform(-0.1, 0.1, 2) * height * (rng.random() < 0.6)
    return _window(image, width, height, drift)


def waves(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Soft stripes in any direction, still or moving."""
    x, y = _grid(width, height)
    angle, count = rng.uniform(0, np.pi), rng.uniform(2, 12)
    speed = rng.uniform(-6, 6) * (rng.random() < 0.6)
    one, other = rng.uniform(-1, 1, (2, 3)).astype(np.float32)
    sharp = rng.uniform(0.8, 4)
    along = 2 * np.pi * count * (np.cos(angle) * x + np.sin(angle) * y)

    def picture(time: float) -> np.ndarray:
        share = np.clip(0.5 + 0.5 * sharp * np.sin(along + np.float32(speed * time)), 0, 1)
        return one + share[..., None] * (other - one)

    return picture


def blocks(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Rectangles of all sizes that overlap, as furniture does; they stay where they are."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = rng.uniform(-1, 1, 3)
    for _ in range(rng.integers(4, 25)):
        w, h = (rng.uniform(0.05, 0.6, 2) * (width, height)).astype(int) + 1
        left, top = rng.integers(-w, width), rng.integers(-h, height)
        area = image[max(0, top) : max(0, top + h), max(0, left) : max(0, left + w)]
        area[:] = rng.uniform(-1, 1, 3)
    return lambda time: image.copy()


def photo(rng: np.random.Generator, width: int, height: int) -> Picture:
    return _photo(rng, width, height, PHOTOS)


def held_out_photo(rng: np.random.Generator, width: int, height: int) -> Picture:
    return _photo(rng, width, height, HELD_OUT_PHOTOS)


def stripes(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Hard bars of several colours and widths, still or moving."""
    x, y = _grid(width, height)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    edges = np.cumsum(rng.uniform(0.04, 0.25, 64))
    colors = rng.uniform(-1, 1, (65, 3)).astype(np.float32)
    speed = rng.uniform(-0.4, 0.4) * (rng.random() < 0.6)
    along = np.cos(angle) * x + np.sin(angle) * y + edges[32]

    def picture(time: float) -> np.ndarray:
        return colors[np.searchsorted(edges, along + speed * (time % 8))]

    return picture


def checks(rng: np.random.Generator, width: int, height: int) -> Picture:
    x, y = _grid(width, height)
    size, drift = rng.uniform(0.06, 0.25), rng.uniform(-0.1, 0.1, 2)
    one, other = rng.uniform(-1, 1, (2, 3)).astype(np.float32)

    def picture(time: float) -> np.ndarray:
        odd = (np.floor((x + drift[0] * time) / size) + np.floor((y + drift[1] * time) / size)) % 2
        return np.where(odd[..., None] > 0, one, other)

    return picture


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], Picture]] = {
    each.__name__: each for each in (plain, gradient, blobs, clouds, waves, blocks, photo)
}
HELD_OUT_BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], Picture]] = {
    "stripes": stripes, "checks": checks, "held-out photo": held_out_photo,
}  # fmt: skip


@functools.cache
def _photograph(name: str) -> Image.Image:
    """Of those that scikit-image ships. Raises ConfigError where it is not installed."""
    try:
        folder = files("skimage.data")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name}: photographs come from scikit-image, and scikit-image is not installed: run "
            f"`{install_command('train')}`"
        ) from error
    with as_file(folder / name) as path, Image.open(path) as image:
        return image.convert("RGB")


def _photo(rng: np.random.Generator, width: int, height: int, names: tuple[str, ...]) -> Picture:
    """A part of a photograph, still or panned over."""
    image = _photograph(str(rng.choice(names)))
    share = rng.uniform(0.3, 1.0) * min(image.width / width, image.height / height)
    w, h = max(1, int(share * width)), max(1, int(share * height))
    left = int(rng.integers(0, image.width - w + 1))
    top = int(rng.integers(0, image.height - h + 1))
    side = 1.25
    cut = image.crop((left, top, left + w, top + h))
    cut = cut.resize((int(side * width), int(side * height)), Image.Resampling.BILINEAR)
    array = np.asarray(cut, np.float32)
    array = (array - array.mean()) / max(25.0, 2 * float(array.std()))
    drift = rng.uniform(-0.08, 0.08, 2) * height * (rng.random() < 0.5)
    return _window(array, width, height, drift)


def _window(image: np.ndarray, width: int, height: int, drift: np.ndarray) -> Picture:
    """Part of a larger image that moves to and fro, drift in pixels a second."""
    spare = np.array([image.shape[1] - width, image.shape[0] - height])

    def picture(time: float) -> np.ndarray:
        moved = np.abs((spare / 2 + drift * time) % np.maximum(2 * spare, 1) - spare)
        left, top = np.minimum(moved, spare).astype(int)
        return image[top : top + height, left : left + width].copy()

    return picture


def _grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, width] and y [height, 1] float32 of pixel centres, in frame heights from the middle."""
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / height
    return x[None, :], y[:, None]


def _stretched(grain: np.ndarray, width: int, height: int) -> np.ndarray:
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        for plane in np.moveaxis(grain, -1, 0)
    ]
    return np.stack(planes, -1)
