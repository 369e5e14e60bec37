"""Weights that a checkpoint stores as 8-bit floating point numbers (E4M3, arXiv:2209.05433) with
scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vicort.export.qwen2_5_vl.stored_tensors import FLOATS, StoredModule

if TYPE_CHECKING:
    from torch import Tensor

STORED = ("F8_E4M3",)


@dataclass(frozen=True)
class Float8Layout:
    """weight [out,in] and weight_scale of compressed-tensors, one number for the weight, a row or a
    block."""

    method: str
    # rows and columns with one scale: (1, 0) a row, (0, 0) the whole weight; 0 = all
    block: tuple[int, int]

    scale: ClassVar = "weight_scale"
    leaves: ClassVar[tuple[str, ...]] = ("weight", "weight_scale")

    def __str__(self) -> str:
        rows, columns = self.block
        each = f"blocks of {rows}x{columns}" if columns else "one scale per row"
        return f"{self.method}, 8 bits (float8 e4m3), {each if rows else 'one scale'}"

    def read(self, stored: StoredModule, shape: tuple[int, int]) -> Tensor:
        """[out,in] float32."""
        rows, columns = shape
        height, width = self.block[0] or rows, self.block[1] or columns
        grid = [-(-rows // height), -(-columns // width)]  # the last block may be smaller
        others = [[1], []] if grid == [1, 1] else [grid[:1]] if grid[1] == 1 else []
        weight = stored.read("weight", STORED, [rows, columns]).float()
        scales = stored.read(self.scale, FLOATS, grid, *others).float().reshape(grid)
        scales = scales.repeat_interleave(height, 0)[:rows]
        # a column of scales spreads by itself
        return weight.mul_(
            scales if grid[1] == 1 else scales.repeat_interleave(width, 1)[:, :columns]
        )


@dataclass(frozen=True)
class FineGrainedLayout(Float8Layout):
    """quant_method fp8 of transformers: weight_scale_inv [out/rows,in/columns] is, in spite of its
    name, what the weight is multiplied by."""

    scale: ClassVar = "weight_scale_inv"
    leaves: ClassVar[tuple[str, ...]] = ("weight", "weight_scale_inv")
