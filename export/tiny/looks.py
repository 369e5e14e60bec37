"""How a stream looks: renderer, palette, background and camera, by families of which some are kept
from training."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, replace

import numpy as np

from vicort.export.tiny.backgrounds import BACKGROUNDS, HELD_OUT_BACKGROUNDS
from vicort.export.tiny.outlines import FONTS, Font, random_font

FINISHES = ("smooth", "hard", "outlined", "textured", "shadow")
HELD_OUT_FINISHES = ("ball", "two-tone")
# hue in degrees, saturation, value: from, to
REGIONS = {
    "red": ((-12, 10), (0.72, 1.0), (0.6, 1.0)),
    "green": ((95, 150), (0.55, 1.0), (0.4, 0.95)),
    "blue": ((208, 242), (0.6, 1.0), (0.5, 1.0)),
    "yellow": ((47, 62), (0.65, 1.0), (0.8, 1.0)),
    "white": ((0, 360), (0.0, 0.07), (0.88, 1.0)),
    "purple": ((270, 298), (0.5, 1.0), (0.45, 0.9)),
}
PALETTES = {  # held out: the names' colours in style sheets, and those of a design guide
    "web": {
        "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
        "white": (255, 255, 255), "purple": (128, 0, 128),
    },
    "poster": {
        "red": (244, 67, 54), "green": (76, 175, 80), "blue": (33, 100, 243),
        "yellow": (255, 235, 59), "white": (250, 250, 250), "purple": (156, 39, 176),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """What happens between the scene and the file."""

    noise: str = "gauss"  # gauss | coarse | salt
    strength: float = 6.0  # standard deviation, of 255; for salt: per mille of the pixels
    shake: float = 0.0  # standard deviation of the frame's shift, as a share of its height
    exposures: tuple[tuple[float, float], ...] = ()  # (from second, gain)
    gain: float = 1.0

    def gain_at(self, time: float) -> float:
        passed = [gain for start, gain in self.exposures if start <= time]
        return self.gain * (passed[-1] if passed else 1.0)


@dataclass(frozen=True)
class Look:
    """How a stream is drawn. The default is typical for training."""

    background: str = "blobs"
    level: float = 80.0  # mean brightness of the background, of 255
    contrast: float = 25.0  # how far its colours stray from the mean
    finish: str = "smooth"
    edge: float = 1.0  # pixels over which a thing's border fades
    shading: float = 0.1  # how much darker a thing is on the side away from the light
    light: float = np.pi / 2  # radians, direction in which the light shines; pi / 2 = down
    font: Font = field(default_factory=Font)
    palette: str = "regions"  # regions: drawn from REGIONS; or a name of PALETTES
    camera: Camera = field(default_factory=Camera)


def random_look(rng: np.random.Generator, seconds: float = 30.0) -> Look:
    """A look of the training families, for a stream of that length."""
    return Look(
        background=str(rng.choice(list(BACKGROUNDS), p=[0.08, 0.14, 0.2, 0.14, 0.16, 0.1, 0.18])),
        finish=str(rng.choice(FINISHES, p=[0.3, 0.25, 0.15, 0.15, 0.15])),
        font=random_font(rng),
        palette="regions",
        **_circumstances(rng, seconds),
    )


def look_without_photo(rng: np.random.Generator, seconds: float = 30.0) -> Look:
    """A look of the training families that needs nothing of scikit-image's."""
    look = random_look(rng, seconds)
    return replace(look, background="clouds") if look.background == "photo" else look


def held_out_look(rng: np.random.Generator, seconds: float = 30.0) -> Look:
    """A look of families that training never sees: background, finish, font and palette."""
    return Look(
        background=str(rng.choice(list(HELD_OUT_BACKGROUNDS))),
        finish=str(rng.choice(HELD_OUT_FINISHES)),
        font=FONTS[str(rng.choice(list(FONTS)))],
        palette=str(rng.choice(list(PALETTES))),
        **_circumstances(rng, seconds),
    )


def _circumstances(rng: np.random.Generator, seconds: float) -> dict:
    night = rng.random() < 0.12
    steps = rng.integers(1, 4) if rng.random() < 0.15 else 0
    starts = sorted(rng.uniform(0, seconds, steps))
    camera = Camera(
        noise=str(rng.choice(["gauss", "coarse"], p=[0.75, 0.25])),
        strength=rng.uniform(8, 20) if night else rng.uniform(0, 22) * rng.random(),
        shake=rng.uniform(0.004, 0.03) if rng.random() < 0.2 else 0.0,
        exposures=tuple((float(start), float(rng.uniform(0.6, 1.35))) for start in starts),
        gain=rng.uniform(0.4, 0.65) if night else 1.0,
    )
    return {
        "level": rng.uniform(15, 150) if rng.random() < 0.85 else rng.uniform(150, 215),
        "contrast": rng.uniform(5, 60),
        "edge": rng.uniform(0.7, 3.0),
        "shading": rng.uniform(0, 0.45),
        "light": rng.uniform(0, 2 * np.pi),
        "camera": camera,
    }


def color_of(name: str, palette: str, rng: np.random.Generator) -> np.ndarray:
    """[3] float32 of 0 to 255: a colour that goes by this name."""
    if palette != "regions":
        return np.asarray(PALETTES[palette][name], np.float32) + rng.uniform(-4, 4)
    hue, saturation, value = (rng.uniform(*limits) for limits in REGIONS[name])
    return 255 * np.asarray(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value), np.float32)
