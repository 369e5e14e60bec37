"""Draws the frames of a stream."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter

from vicort.export.tiny.backgrounds import BACKGROUNDS, HELD_OUT_BACKGROUNDS
from vicort.export.tiny.looks import Look, color_of
from vicort.export.tiny.outlines import cover
from vicort.export.tiny.world import Thing, ThingStream

FINE = 4  # samples along a pixel's side
DISTINCT = 75.0  # distance of a thing's colour from what is around it, below which it has a border
BACKGROUND, NOISE, SHAKE, COLOR, TEXTURE = range(2, 7)  # what random numbers are for


class Painter:
    """Draws the frames of a stream, in any order; each depends only on the seed and its time."""

    def __init__(
        self, stream: ThingStream, width: int, height: int, look: Look | None = None
    ) -> None:
        """width, height: pixels. look: `Look()` where none is given."""
        self.stream = stream
        self.width = width
        self.height = height
        self.look = look or Look()

    def frame(self, time: float) -> np.ndarray:
        """[height, width, 3] uint8 RGB at `time` in seconds."""
        look, camera = self.look, self.look.camera
        moment = round(time * 1000)
        image = look.level + look.contrast * self._background(time)
        shift = np.round(
            camera.shake * self.height * self._rng(SHAKE, moment).standard_normal(2)
        ).astype(int)
        if shift.any():
            image = np.roll(image, shift, (1, 0))
        for thing in self.stream.things:
            if thing.start <= time < thing.end:
                self._draw(image, thing, time, shift)
        image *= camera.gain_at(time)
        self._add_noise(image, self._rng(NOISE, moment))
        return np.clip(image, 0, 255, out=image).astype(np.uint8)

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.stream.seed, *what])

    @cached_property
    def _background(self):
        make = (BACKGROUNDS | HELD_OUT_BACKGROUNDS)[self.look.background]
        return make(self._rng(BACKGROUND), self.width, self.height)

    def _draw(self, image: np.ndarray, thing: Thing, time: float, shift: np.ndarray) -> None:
        """Paints `thing` into `image` [height, width, 3] float32, in place."""
        look, number = self.look, self.stream.things.index(thing)
        radius = thing.radius_at(time) * self.height
        x, y = np.array(thing.center(time)) * self.height + (self.width / 2, self.height / 2)
        x, y = x + shift[0], y + shift[1]
        left, top = int(np.floor(x)), int(np.floor(y))
        hard = look.finish == "hard"
        alpha = cover(
            thing.shape,
            look.font,
            radius,
            thing.angle,
            (x - left - 0.5, y - top - 0.5),
            1 if hard else FINE,
        )
        side = len(alpha)
        if look.edge > 1.2 and not hard:
            alpha = _blurred(alpha, look.edge / 2)
        if thing.hidden:
            alpha[:, : int(side * thing.hidden)] = 0
        color = self._color(thing, number, image[_inside(image, left, top, side)[0]])
        self._blend(image, color(alpha, radius), alpha, left, top)

    def _color(self, thing: Thing, number: int, around: np.ndarray):
        """A function of the cover and the radius in pixels: [side, side, 3] float32, the thing's
        surface."""
        look = self.look
        base = color_of(thing.color, look.palette, self._rng(COLOR, number))
        texture = self._rng(TEXTURE, number)
        mean = around.mean((0, 1)) if around.size else np.zeros(3)
        faint = np.linalg.norm(base - mean) < DISTINCT
        border = np.float32(10 if base.mean() > 90 else 235)

        def surface(alpha: np.ndarray, radius: float) -> np.ndarray:
            side = len(alpha)
            v = np.linspace(-1.05, 1.05, side, dtype=np.float32)[:, None]
            h = v.T
            along = np.cos(look.light) * h + np.sin(look.light) * v
            tone = 1 - look.shading * (along + 1) / 2
            if look.finish == "ball":
                tone *= 1.15 - 0.45 * np.clip(np.hypot(h + 0.35, v + 0.35), 0, 1.2)
            elif look.finish == "two-tone":
                tone *= np.where(h + 0.3 * v > 0, 0.82, 1.05)
            elif look.finish == "textured":
                turn, count = texture.uniform(0, np.pi), texture.uniform(3, 9)
                wave = np.sin(count * (np.cos(turn) * h + np.sin(turn) * v) * np.pi)
                tone *= 1 - texture.uniform(0.08, 0.28) * (wave > 0)
            painted = base * tone[:, :, None]
            if look.finish == "outlined" or faint:
                inner = _blurred(alpha, max(1.0, 0.05 * radius)) > 0.86
                painted = np.where(inner[:, :, None], painted, border)
            return painted

        return surface

    def _blend(
        self, image: np.ndarray, surface: np.ndarray, alpha: np.ndarray, left: int, top: int
    ) -> None:
        side = len(alpha)
        if self.look.finish == "shadow":
            offset = max(2, side // 14)
            soft = 0.45 * _blurred(alpha, side / 25)
            place, own = _inside(image, left + offset, top + offset, side)
            image[place] *= 1 - soft[own][:, :, None]
        place, own = _inside(image, left, top, side)
        patch = image[place]
        patch += alpha[own][:, :, None] * (surface[own] - patch)

    def _add_noise(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Adds the camera's noise to `image` [height, width, 3] float32, in place."""
        camera = self.look.camera
        if camera.noise == "salt":
            hits = rng.random(image.shape[:2], np.float32)
            image[hits < camera.strength / 2000] = 0
            image[hits > 1 - camera.strength / 2000] = 255
        elif camera.noise == "coarse":
            grain = rng.standard_normal((self.height // 4 + 1, self.width // 4 + 1, 3), np.float32)
            coarse = grain.repeat(4, 0).repeat(4, 1)[: self.height, : self.width]
            image += camera.strength * coarse
        elif camera.strength:
            image += camera.strength * rng.standard_normal(image.shape, np.float32)


def _blurred(alpha: np.ndarray, sigma: float) -> np.ndarray:
    image = Image.fromarray((alpha * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(sigma))), np.float32) / 255


def _inside(
    image: np.ndarray, left: int, top: int, side: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Of a square around pixel (left, top): the part that is in the image, there and in the
    square."""
    height, width = image.shape[:2]
    x, y = left - side // 2, top - side // 2
    columns = slice(max(0, x), max(0, min(width, x + side)))
    rows = slice(max(0, y), max(0, min(height, y + side)))
    own = (
        slice(rows.start - y, rows.stop - y),
        slice(columns.start - x, columns.stop - x),
    )
    return (rows, columns), own
