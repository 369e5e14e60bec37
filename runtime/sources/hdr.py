"""High dynamic range (PQ and HLG) -> the BT.709 pictures that models are trained on."""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
PEAK = 1000.0  # cd/m2 of the brightest pixel that is kept apart, as most pictures are mastered
WHITE = 203.0  # cd/m2 of diffuse white (ITU-R BT.2408), which becomes white
GAMMA = 2.4  # of a display (ITU-R BT.1886)
ROWS = 32  # rows of pixels at a time, which stay in the processor's cache
# linear light of BT.2020 -> of BT.709 (ITU-R BT.2087, the inverse of its matrix)
TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
CODES = 4096  # of the tables: 12 bits


class ToneMap:
    """Maps pictures of one transfer characteristic. Brightness up to about half of white stays;
    above it, light up to PEAK is compressed, and what is brighter becomes white."""

    def __init__(self, transfer: int) -> None:
        """transfer: PQ or HLG."""
        signal = np.linspace(0, 1, CODES)
        self._is_hlg = transfer == HLG
        linear = hlg_light(signal) if self._is_hlg else from_pq(signal)
        # PQ is mapped channel by channel; HLG first needs the brightness of the whole pixel
        self._light = (linear if self._is_hlg else compressed(linear) / WHITE).astype(np.float32)
        self._compressed = (compressed(np.linspace(0, PEAK, CODES)) / WHITE).astype(np.float32)
        self._codes = np.rint(255 * np.linspace(0, 1, CODES) ** (1 / GAMMA)).astype(np.uint8)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """image: [height, width, 3] uint16 RGB with the matrix and range of its picture removed.
        -> the same size, uint8."""
        out = np.empty(image.shape, np.uint8)
        for row in range(0, len(image), ROWS):
            light = self._light[image[row : row + ROWS] >> 4]
            if self._is_hlg:
                # the system gamma of 1.2 acts on the brightness of a pixel (ITU-R BT.2100)
                light *= PEAK * np.maximum(light @ LUMA, 1e-6)[..., None] ** np.float32(0.2)
                light = self._compressed[_indices(light / np.float32(PEAK))]
            out[row : row + ROWS] = self._codes[_indices(light @ TO_709.T)]
        return out


def from_pq(signal: np.ndarray) -> np.ndarray:
    """Signal of 0 to 1 -> cd/m2 (SMPTE ST 2084)."""
    power = np.asarray(signal, float) ** (32 / 2523)
    return 10_000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (16384 / 2610)


def to_pq(light: np.ndarray) -> np.ndarray:
    """cd/m2 -> signal of 0 to 1 (SMPTE ST 2084)."""
    power = (np.asarray(light, float) / 10_000) ** (2610 / 16384)
    return ((C1 + C2 * power) / (1 + C3 * power)) ** (2523 / 32)


C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """Signal of 0 to 1 -> light of the scene, 0 to 1 (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def compressed(light: np.ndarray) -> np.ndarray:
    """cd/m2 of a display of PEAK -> cd/m2 of one of WHITE: the roll-off of ITU-R BT.2390, a
    Hermite spline above a knee, in PQ."""
    peak, white = to_pq(np.array([PEAK, WHITE]))
    signal, most = np.clip(to_pq(light) / peak, 0, 1), white / peak
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * most
    )
    return from_pq(np.where(signal < knee, signal, spline) * peak)


def _indices(light: np.ndarray) -> np.ndarray:
    """Indices of tables for light of 0 to 1."""
    return (np.clip(light, 0, 1) * np.float32(CODES - 1) + np.float32(0.5)).astype(np.uint16)
