"""Selects the tokens to encode: CodecFlow's masks (arXiv 2604.06036) on the patch grid."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vicort.runtime.core import MOTION_CELL, UNIT_FRAMES, Chunk, Frame
from vicort.runtime.devices.preprocess import Box, letterbox
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.policies.drop import MotionPruning

MERGE = 2  # patches on each side of a token (spatial_merge_size of Qwen2.5-VL)
# Blocks on each side of a patch. Their means are compared: noise of single pixels averages out, an
# object's edge does not.
BLOCKS = 2


@dataclass(frozen=True)
class Kept:
    """The part of a unit that is encoded."""

    tokens: np.ndarray  # indices of its P tokens, ascending
    anchor: bool  # whether one of its frames is whole because it depends on no earlier frame


class Pruner:
    """The masks of one stream. Chunks come in order."""

    def __init__(self, policy: MotionPruning, model: ModelSpec) -> None:
        self._policy, self._letterboxed = policy, model.fixed_size is not None
        # Patches that have moved since the last whole frame.
        self._moved = np.zeros((0, 0), bool)
        # The frame before, as the engine takes it.
        self._before = np.zeros((0, 0, 3), np.uint8)
        self._shape: tuple[int, ...] = ()  # of the source's frame before
        self._refreshed = Fraction(0)  # seconds, of the last whole frame
        self._next_unit = -1

    def fork(self) -> Pruner:
        """One in the same state, which leaves this one as it is."""
        fork = copy(self)
        fork._moved, fork._before = self._moved.copy(), self._before.copy()
        return fork

    def __call__(self, chunk: Chunk, images: np.ndarray) -> list[Kept]:
        """The kept part of each unit. images: [F,H,W,3] uint8, the chunk's frames, resized."""
        # The first chunk of the stream, or chunks before it were dropped.
        if chunk.first_unit != self._next_unit:
            self._shape = ()
        self._next_unit = chunk.first_unit + chunk.units
        if images.shape[1:] != self._before.shape:  # the first chunk, or one of another grid
            rows, columns = chunk.grid.rows, chunk.grid.columns
            self._moved = np.zeros((rows * MERGE, columns * MERGE), bool)
            self._before, self._shape = np.zeros_like(images[0]), ()
        masks = [
            self._mask(frame, image) for frame, image in zip(chunk.frames, images, strict=True)
        ]
        units = [masks[first : first + UNIT_FRAMES] for first in range(0, len(masks), UNIT_FRAMES)]
        return [
            Kept(
                np.flatnonzero(tokens_of(np.logical_or.reduce([mask for mask, _ in unit]))),
                any(whole for _, whole in unit),
            )
            for unit in units
        ]

    def _mask(self, frame: Frame, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Patches [rows,columns] of a frame to encode, and whether the frame is whole regardless of
        motion."""
        whole = self._is_whole(frame)
        if whole:
            self._moved[:] = False
            self._refreshed = frame.time
        else:
            self._moved |= self._moves(frame, image)
        self._before[:], self._shape = image, frame.shape
        return (np.ones_like(self._moved) if whole else self._moved.copy()), whole

    def _is_whole(self, frame: Frame) -> bool:
        if self._shape != frame.shape or (frame.motion is not None and frame.motion.refreshed):
            return True
        return frame.time - self._refreshed >= self._policy.refresh

    def _moves(self, frame: Frame, image: np.ndarray) -> np.ndarray:
        """Patches [rows,columns] where the frame differs from the one before."""
        policy = self._policy
        vectors = frame.motion is not None and frame.motion.cells is not None
        difference = self._difference(image) if policy.alpha or not vectors else np.float32(0)
        if frame.motion is None or frame.motion.cells is None:
            return np.asarray(difference >= policy.difference)
        height, width = image.shape[:2]
        box = Box(0, 0, height, width)
        if self._letterboxed:
            box = letterbox(*frame.shape, height, width)
        # with pixels that are not square, another size than the frame's
        shape = frame.motion.size or frame.shape
        vertical = Side(
            self._moved.shape[0],
            height,
            box.top,
            box.height,
            shape[0],
            frame.motion.top,
        )
        horizontal = Side(
            self._moved.shape[1],
            width,
            box.left,
            box.width,
            shape[1],
            frame.motion.left,
        )
        longest = vertical.longest(horizontal.longest(frame.motion.cells.T).T)
        # Cells hold lengths without directions. Where a strip is stretched, the larger ratio is
        # taken: it may keep a patch too many, and misses none that moves.
        scale = max(box.height / shape[0], box.width / shape[1])
        moved: np.ndarray = longest * scale + policy.alpha * difference >= policy.tau
        return moved

    def _difference(self, image: np.ndarray) -> np.ndarray:
        """[rows,columns] float32: mean difference, in grey levels, of each patch's blocks from the
        frame before."""
        now, before = (block_means(each, *self._moved.shape) for each in (image, self._before))
        return np.abs(now - before).mean(axis=(1, 3))


@dataclass(frozen=True)
class Side:
    """How patches cover motion cells along one axis of the frame."""

    patches: int  # of the engine's frame
    pixels: int  # of the engine's frame
    start: int  # first pixel of the engine's frame that the source's frame covers
    length: int  # pixels of the engine's frame that the source's frame covers
    source: int  # pixels of the source's frame
    origin: int  # start of the first cell, in the source's pixels: 0 or less

    def longest(self, cells: np.ndarray) -> np.ndarray:
        """[patches, n] from [cells of this axis, n]: the largest cell under each patch, 0 where the
        patch lies on a black bar."""
        edges = (
            (np.arange(self.patches + 1) * self.pixels / self.patches - self.start)
            * self.source
            / self.length
        )
        on_frame = (edges[1:] > 0) & (edges[:-1] < self.source)
        first = np.floor((edges[:-1].clip(0) - self.origin) / MOTION_CELL).astype(int)
        # One past the last cell.
        last = np.ceil((edges[1:].clip(None, self.source) - self.origin) / MOTION_CELL).astype(int)
        largest = np.zeros((self.patches, cells.shape[1]), np.float32)
        for patch in np.flatnonzero(on_frame):
            largest[patch] = cells[first[patch] : last[patch]].max(axis=0)
        return largest


def tokens_of(patches: np.ndarray) -> np.ndarray:
    """[P] bool from [rows,columns] bool: all patches of a token are encoded, or none."""
    rows, columns = patches.shape
    return (
        patches.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE).any(axis=(1, 3)).reshape(-1)
    )


def block_means(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[rows,BLOCKS,columns,BLOCKS] float32: mean grey level of each block of each patch of a frame
    [H,W,3]."""
    down, across = rows * BLOCKS, columns * BLOCKS
    # Rows of pixels are summed first, because they are contiguous.
    sums = image.reshape(down, image.shape[0] // down, -1).sum(axis=1, dtype=np.uint32)
    means = sums.reshape(down, across, -1).sum(axis=2) / np.float32(image.size // (down * across))
    return means.astype(np.float32).reshape(rows, BLOCKS, columns, BLOCKS)
