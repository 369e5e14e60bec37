"""The outlines of the shapes: polygons, in proportions that differ from font to font."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vicort.export.tiny.world import SHAPES

ROUND = 72  # corners of a circle


@dataclass(frozen=True)
class Font:
    """Proportions of the shapes. The default is about the middle of what training sees."""

    arm: float = 0.28  # half the width of a cross's arms, its length is 0.95
    hole: float = 0.6  # inner radius of a ring
    notch: float = 0.42  # inner radius of a star
    points: int = 5  # of a star
    slim: float = 0.75  # half the width of a diamond, its half height is 1
    wide: float = 1.0  # how much wider a triangle is than one of equal sides
    flat: float = 1.0  # height / width of squares and circles


FONTS = {  # held out: fonts of proportions that training does not have
    "held-out slender": Font(arm=0.15, hole=0.82, notch=0.33, points=5, slim=0.5, wide=0.8),
    "held-out fat": Font(arm=0.39, hole=0.43, notch=0.51, points=5, slim=1.0, wide=1.18, flat=0.88),
}


def random_font(rng: np.random.Generator) -> Font:
    return Font(
        arm=rng.uniform(0.18, 0.36),
        hole=rng.uniform(0.46, 0.78),
        notch=rng.uniform(0.36, 0.49),
        points=int(rng.choice([5, 5, 5, 6, 4])),
        slim=rng.uniform(0.54, 0.96),
        wide=rng.uniform(0.85, 1.15),
        flat=rng.uniform(0.9, 1.1),
    )


def outline(shape: str, font: Font) -> np.ndarray:
    """[corners, 2] x and y of a shape of radius 1 around the origin, y downwards. A ring is its
    outer circle."""
    if shape in ("circle", "ring"):
        turn = np.linspace(0, 2 * np.pi, ROUND, endpoint=False)
        return np.stack([np.cos(turn), np.sin(turn) * min(1.0, font.flat)], 1)
    if shape == "square":
        side = 0.74
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side * (1, font.flat)
    if shape == "triangle":
        turn = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3
        corners = np.stack([np.cos(turn) * font.wide, np.sin(turn)], 1)
        return corners / max(1.0, np.linalg.norm(corners, axis=1).max())
    if shape == "cross":
        a, b = font.arm, 0.95
        right = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
        return np.array([*right, *((-x, -y) for x, y in right)])
    if shape == "diamond":
        return np.array([(0, -1), (font.slim, 0), (0, 1), (-font.slim, 0)])
    if shape == "star":
        turn = -np.pi / 2 + np.arange(2 * font.points) * np.pi / font.points
        reach = np.where(np.arange(2 * font.points) % 2, font.notch, 1.0)
        return np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None]
    raise ValueError(f"shape={shape!r}: the world has {', '.join(SHAPES)}")


def cover(
    shape: str, font: Font, radius: float, angle: float, offset: tuple[float, float], finer: int
) -> np.ndarray:
    """[side, side] float32, 0 to 1: how far each pixel of a square around the shape is covered.

    radius: pixels; angle: radians; offset: of the centre from the middle of the square, in pixels;
    finer: samples along a pixel's side, 1 = hard borders.
    """
    side = int(np.ceil(2.1 * radius)) + 3
    middle = np.array([side / 2 + offset[0], side / 2 + offset[1]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    image = Image.new("L", (side * finer, side * finer))
    draw = ImageDraw.Draw(image)

    def fill(corners: np.ndarray, value: int) -> None:
        placed = ((corners @ turn) * radius + middle) * finer - 0.5
        draw.polygon([tuple(corner) for corner in placed.tolist()], fill=value)

    fill(outline(shape, font), 255)
    if shape == "ring":
        fill(outline(shape, font) * font.hole, 0)
    if finer > 1:
        image = image.reduce(finer)
    return np.asarray(image, np.float32) / 255
