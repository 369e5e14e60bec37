"""How many parameters a model has, from its configuration alone and without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vicort.export.qwen2_5_vl.configuration import (
    Configuration,
    LanguageConfiguration,
    VisionConfiguration,
)
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.manifest import Weights

INT4_GROUP = 128  # inputs; `GROUP` in weight_compression.py says the same, and needs torch
FLOAT_BYTES = 4  # of a parameter in fp32


@dataclass(frozen=True)
class MatrixCount:
    """Linear layers of one shape."""

    inputs: int
    outputs: int
    count: int = 1
    bias: bool = True

    @property
    def numbers(self) -> int:
        return self.inputs * self.outputs * self.count

    @property
    def parameters(self) -> int:
        return self.numbers + self.bias * self.outputs * self.count


def parameter_counts(config: Configuration) -> dict[str, int]:
    """Of `vision` and `language`. A tied output head is no parameter of its own."""
    vision, language = config.vision, config.language
    tokens = language.vocabulary * language.width
    norms = (2 * vision.depth + 1) * vision.width, (2 * language.layers + 1) * language.width
    vision_matrices = _of_vision(vision, language.width)
    head = 0 if language.tied else tokens
    return {
        "vision": norms[0] + sum(each.parameters for each in vision_matrices),
        "language": norms[1]
        + tokens
        + head
        + sum(each.parameters for each in _of_layers(language)),
    }


def float_bytes(
    config: Configuration, item: int, plans: bool = False, embedding: int | None = None
) -> int:
    """Bytes of the weights of a set that has no integers. As `weight_bytes_of` in build_space.py,
    which needs torch.

    item: bytes of a number; plans: of TensorRT; embedding: bytes of a number in embedding.bin,
    where no tied output head is a part of that file; None = `item`.
    """
    total = sum(parameter_counts(config).values()) + _filled(config)
    rows = config.language.vocabulary * config.language.width
    if config.language.tied:
        return item * total + (rows * (embedding or item) if plans else 0)
    return item * (total - rows) + (embedding or item) * rows


def compressed_bytes(config: Configuration, weights: Weights, embedding: int = FLOAT_BYTES) -> int:
    """Bytes of the weights of a CPU set in fp32 with `--weights`. embedding: bytes
    of a number in embedding.bin. As `weight_bytes_of` in build_space.py."""
    language = config.language
    head = MatrixCount(language.width, language.vocabulary, bias=False)
    seen = list(_of_vision(config.vision, language.width, padded=True))
    total = float_bytes(replace(config, language=replace(language, tied=False)), FLOAT_BYTES)
    total -= (FLOAT_BYTES - embedding) * language.vocabulary * language.width
    total -= FLOAT_BYTES * head.numbers
    total -= FLOAT_BYTES * sum(each.numbers for each in [*seen, *_of_layers(language)])
    total += sum(_int8_bytes(each) for each in [*seen, head])
    for each in _of_layers(language):
        if weights == "int4" and each.inputs % INT4_GROUP == 0:
            total += each.numbers // 2 + FLOAT_BYTES * each.numbers // INT4_GROUP
        else:
            total += _int8_bytes(each)
    return total


def _int8_bytes(matrices: MatrixCount) -> int:
    """With a scale for each output."""
    return matrices.numbers + FLOAT_BYTES * matrices.outputs * matrices.count


def _filled(config: Configuration) -> int:
    """Zeros in engines that fill up the vision encoder's MLPs."""
    width = config.language.width
    padded, plain = (
        sum(each.parameters for each in _of_vision(config.vision, width, padded))
        for padded in (True, False)
    )
    return padded - plain


def _of_vision(
    config: VisionConfiguration, token_width: int, padded: bool = False
) -> Iterator[MatrixCount]:
    """token_width: of a visual token. padded: as in engines."""
    intermediate = config.padded_intermediate if padded else config.intermediate
    merged = config.width * config.merge**2
    yield MatrixCount(UNIT_FRAMES * config.patch**2 * 3, config.width, bias=False)
    yield MatrixCount(config.width, 3 * config.width, config.depth)
    yield MatrixCount(config.width, config.width, config.depth)
    yield MatrixCount(config.width, intermediate, 2 * config.depth)
    yield MatrixCount(intermediate, config.width, config.depth)
    yield MatrixCount(merged, merged)
    yield MatrixCount(merged, token_width)


def _of_layers(config: LanguageConfiguration) -> Iterator[MatrixCount]:
    """Without the output head."""
    queries, keys = (heads * config.head_dim for heads in (config.query_heads, config.kv_heads))
    yield MatrixCount(config.width, queries, config.layers)
    yield MatrixCount(config.width, keys, 2 * config.layers)
    yield MatrixCount(queries, config.width, config.layers, bias=False)
    yield MatrixCount(config.width, config.intermediate, 2 * config.layers, bias=False)
    yield MatrixCount(config.intermediate, config.width, config.layers, bias=False)
