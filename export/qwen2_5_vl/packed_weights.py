"""Weights that a checkpoint stores as small integers with scales, and the layouts of its files.

torch is imported by what reads weights, because `vicort-info` names a layout without it.

A layout has the names of a layer's tensors (`leaves`) and reads a weight [out,in] from them. Words
are int32 and hold 32 / bits numbers; the first number has the lowest bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vicort.export.qwen2_5_vl.stored_tensors import FLOATS, StoredModule
from vicort.runtime.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

# number i of a word is column (0, 2, 4, 6, 1, 3, 5, 7)[i] of eight; this is the way back
AWQ_NUMBERS = (0, 4, 1, 5, 2, 6, 3, 7)
WORD, BYTE, INDEX = ("I32",), ("I8",), ("I32", "I64")


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out,in]: (values - zeros) * scales, where all columns of a group have one zero and
    one scale in each row."""

    values: Tensor  # [out,in] uint8, 0 to 2^bits - 1
    scales: Tensor  # [out,groups] float32
    zeros: Tensor  # [out,groups] uint8, 0 to 2^bits - 1
    group: int  # columns in a group
    bits: int
    # [in] int64, the group of each column; None: each group is the next `group` columns
    order: Tensor | None = None

    @property
    def is_symmetric(self) -> bool:
        """Whether all zero points are in the middle of the range."""
        return bool((self.zeros == 2 ** (self.bits - 1)).all())

    def dequantised(self) -> Tensor:
        """[out,in] float32."""
        weight = self.values.float()
        if self.order is None:
            grouped = weight.unflatten(1, (-1, self.group))  # a view
            grouped.sub_(self.zeros[:, :, None]).mul_(self.scales[:, :, None])
            return weight
        return weight.sub_(self.zeros[:, self.order]).mul_(self.scales[:, self.order])


@dataclass(frozen=True)
class AwqLayout:
    """AWQ (arXiv:2306.00978), version gemm: qweight [in,out/8] and qzeros [groups,out/8], words
    along the outputs, whose numbers are interleaved; scales [groups,out]."""

    group: int | None  # None: all columns
    bits: int = 4

    leaves: ClassVar = ("qweight", "qzeros", "scales")

    def __str__(self) -> str:
        return f"AWQ, {self.bits} bits, {_groups(self.group)}"

    def read(self, stored: StoredModule, shape: tuple[int, int]) -> PackedWeight:
        rows, columns = shape
        groups, words = stored.groups(columns, self.group), _words(stored, rows, self.bits)
        values = stored.read("qweight", WORD, [columns, words])
        zeros = stored.read("qzeros", WORD, [groups, words])
        scales = stored.read("scales", FLOATS, [groups, rows])
        return PackedWeight(
            values=_deinterleaved(unpack(values, self.bits)).T.contiguous(),
            scales=scales.float().T.contiguous(),
            zeros=_deinterleaved(unpack(zeros, self.bits)).T.contiguous(),
            group=columns // groups,
            bits=self.bits,
        )


@dataclass(frozen=True)
class GptqLayout:
    """GPTQ (arXiv:2210.17323): qweight [in*bits/32,out], words along the inputs; qzeros
    [groups,out*bits/32], words along the outputs; scales [groups,out]; g_idx [in], the group of
    each column."""

    group: int | None  # None: all columns
    bits: int
    act_order: bool  # groups are not columns in a row, so g_idx is needed
    # checkpoint_format gptq has 1 subtracted from each zero point, gptq_v2 has not
    subtracted: bool

    leaves: ClassVar = ("qweight", "qzeros", "scales", "g_idx")

    def __str__(self) -> str:
        order = " in act-order" if self.act_order else ""
        return f"GPTQ, {self.bits} bits, {_groups(self.group)}{order}"

    def read(self, stored: StoredModule, shape: tuple[int, int]) -> PackedWeight:
        rows, columns = shape
        groups = stored.groups(columns, self.group)
        values = stored.read("qweight", WORD, [_words(stored, columns, self.bits), rows])
        zeros = stored.read("qzeros", WORD, [groups, _words(stored, rows, self.bits)])
        scales = stored.read("scales", FLOATS, [groups, rows])
        if self.subtracted:
            # Whole words are added to, as gptqmodel subtracts: a zero point of 0 borrows from the
            # next number.
            zeros = zeros + sum(1 << shift for shift in range(0, 32, self.bits))
        return PackedWeight(
            values=unpack(values.T, self.bits),
            scales=scales.float().T.contiguous(),
            zeros=unpack(zeros, self.bits).T.contiguous(),
            group=columns // groups,
            bits=self.bits,
            order=self._order(stored, columns, groups),
        )

    def _order(self, stored: StoredModule, columns: int, groups: int) -> Tensor | None:
        if "g_idx" not in stored.tensors and not self.act_order:
            return None
        import torch

        order = stored.read("g_idx", INDEX, [columns]).long()
        if order.min() < 0 or order.max() >= groups:
            raise EngineError(
                f"{stored.path}: g_idx of {stored.name!r} names groups {order.min()} to "
                f"{order.max()}, there are 0 to {groups - 1}: download the checkpoint again"
            )
        plain = torch.arange(columns) // (columns // groups)
        return None if torch.equal(order, plain) else order


@dataclass(frozen=True)
class PackQuantizedLayout:
    """Format pack-quantized of compressed-tensors: weight_packed [out,in*bits/32], words along the
    inputs; weight_scale [out,groups]; weight_zero_point [out*bits/32,groups], words along the
    outputs, if it is not symmetric; weight_shape, which is [out,in]."""

    group: int | None  # None: all columns
    bits: int
    symmetric: bool

    leaves: ClassVar = (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    )

    def __str__(self) -> str:
        return f"compressed-tensors, {self.bits} bits, {_groups(self.group)}"

    def read(self, stored: StoredModule, shape: tuple[int, int]) -> PackedWeight:
        import torch

        rows, columns = shape
        if "weight_g_idx" in stored.tensors:
            raise EngineError(
                f"{stored.path}: {stored.name!r} has weight_g_idx (actorder 'group'), which is "
                "not supported: name a checkpoint with actorder 'weight' or none"
            )
        groups, half = stored.groups(columns, self.group), 2 ** (self.bits - 1)
        in_words, out_words = (-(-size * self.bits // 32) for size in (columns, rows))
        values = stored.read("weight_packed", WORD, [rows, in_words])
        scales = stored.read("weight_scale", FLOATS, [rows, groups])
        said = stored.read("weight_shape", INDEX, [2]).tolist()
        if said != [rows, columns]:
            raise EngineError(
                f"{stored.path}: weight_shape of {stored.name!r} is {said}, config.json implies "
                f"{[rows, columns]}: the two are not of one checkpoint"
            )
        if self.symmetric:
            zeros = torch.full((rows, groups), half, dtype=torch.uint8)
        else:
            # numbers and zero points are both stored with `half` added
            packed = stored.read("weight_zero_point", WORD, [out_words, groups])
            zeros = unpack(packed.T, self.bits)[:, :rows].T.contiguous()
        return PackedWeight(
            values=unpack(values, self.bits)[:, :columns].contiguous(),
            scales=scales.float(),
            zeros=zeros,
            group=columns // groups,
            bits=self.bits,
        )


@dataclass(frozen=True)
class Int8Layout:
    """Format int-quantized of compressed-tensors: weight [out,in] int8, weight_scale [out,groups],
    or one number for all; weight_zero_point int8 like it, if it is not symmetric."""

    group: int | None  # None: all columns
    whole: bool  # one scale for the whole weight
    symmetric: bool

    leaves: ClassVar = ("weight", "weight_scale", "weight_zero_point")

    def __str__(self) -> str:
        return f"compressed-tensors, 8 bits, {'one scale' if self.whole else _groups(self.group)}"

    def read(self, stored: StoredModule, shape: tuple[int, int]) -> PackedWeight:
        import torch

        rows, columns = shape
        groups = stored.groups(columns, self.group)
        one_per_row = [[rows]] if groups == 1 else []
        shapes = [[1], []] if self.whole else [[rows, groups], *one_per_row]
        values = stored.read("weight", BYTE, [rows, columns])
        scales = stored.read("weight_scale", FLOATS, *shapes)
        zeros = (
            torch.zeros(1, dtype=torch.int8)
            if self.symmetric
            else stored.read("weight_zero_point", BYTE, *shapes)
        )
        zeros = zeros.reshape(-1, groups if zeros.numel() > 1 else 1)
        return PackedWeight(
            values=_raised(values),
            scales=scales.float().reshape(-1, groups).expand(rows, groups).contiguous(),
            zeros=_raised(zeros).expand(rows, groups).contiguous(),
            group=columns // groups,
            bits=8,
        )


def unpack(words: Tensor, bits: int) -> Tensor:
    """words [rows,n] int32, of a little-endian machine -> [rows,n*32/bits] uint8. bits: 4 or 8."""
    import torch

    # flat first: a contiguous tensor of one column may have any stride
    numbers = words.contiguous().flatten().view(torch.uint8).reshape(len(words), -1)
    return numbers if bits == 8 else torch.stack((numbers & 15, numbers >> 4), dim=-1).flatten(1)


def _deinterleaved(numbers: Tensor) -> Tensor:
    return numbers.unflatten(1, (-1, len(AWQ_NUMBERS)))[:, :, AWQ_NUMBERS].flatten(1)


def _raised(signed: Tensor) -> Tensor:
    """int8 -> uint8, 128 added."""
    import torch

    return signed.view(torch.uint8) ^ 128


def _words(stored: StoredModule, numbers: int, bits: int) -> int:
    """How many words hold them. Raises EngineError if they do not fill the last."""
    if numbers * bits % 32:
        raise EngineError(
            f"{stored.path}: {stored.name!r} has {numbers} rows or columns, which words of "
            f"{32 // bits} numbers do not divide: name an unquantised checkpoint"
        )
    return numbers * bits // 32


def _groups(group: int | None) -> str:
    return f"groups of {group}" if group else "one scale per row"
