"""Multimodal rotary embedding on the host, for policies that score keys as attention does."""

from __future__ import annotations

import numpy as np

from vicort.runtime.manifest import ModelSpec


def rotate(x: np.ndarray, positions: np.ndarray, model: ModelSpec) -> np.ndarray:
    """Rotates keys or queries to their positions (Qwen2-VL, arXiv:2409.12191; RoFormer,
    arXiv:2104.09864).

    x: [..., D]; positions: [..., 3] integers (t, h, w), which broadcast against x. Returns float32.
    Frequency i of D/2 is theta^(-2i/D); it rotates the pair (x[i], x[i + D/2]) by t, h or w, by the
    one of the three sections that i is in.
    """
    half = x.shape[-1] // 2
    frequency = (model.rotary_theta ** -(np.arange(half) / half)).astype(np.float32)
    axis = np.repeat(np.arange(3), model.rotary_sections)
    angle = positions[..., axis].astype(np.float32) * frequency
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = x[..., :half].astype(np.float32), x[..., half:].astype(np.float32)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
