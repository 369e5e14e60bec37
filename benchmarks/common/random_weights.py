"""A checkpoint of random weights, of any size: made a tensor at a time on a device, and written in
Hugging Face layout.

For timing, which does not depend on the values of the weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.checkpoints import write_companions

SHARD_BYTES = 4_000_000_000  # of a file; one of them lies in memory at a time
ITEM_BYTES = 2  # bfloat16
INDEX = "model.safetensors.index.json"
BIAS_DEVIATION = 0.02


def write_random(
    folder: Path, config: dict, side: int, device: str = "cpu", shard_bytes: int = SHARD_BYTES
) -> Path:
    """Writes bfloat16 weights to `folder` unless they are there, and returns it.

    config: of a Qwen2.5-VL, as `checkpoints.config_of` gives it. side: pixels of a frame. device:
    where numbers are drawn, as PyTorch calls it.
    """
    if (folder / INDEX).is_file():
        return folder
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    model.tie_weights()  # a tied head is then no separate parameter
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    shards = list(shards_of(shapes, shard_bytes))
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: _drawn(name, shapes[name], generator) for name in names},
            partial / file,
            metadata={"format": "pt"},
        )
        weight_map |= dict.fromkeys(names, file)
    total = ITEM_BYTES * sum(map(math.prod, shapes.values()))
    (partial / INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n"
    )
    model.config.dtype = torch.bfloat16
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(partial)
    text = config["text_config"]
    GenerationConfig(
        eos_token_id=text["eos_token_id"], pad_token_id=text["pad_token_id"], do_sample=False
    ).save_pretrained(partial)
    write_companions(partial, side)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def shards_of(shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> Iterator[list[str]]:
    """Names of tensors, in order, in groups of at most `shard_bytes`, or of one that is larger."""
    group: list[str] = []
    size = 0
    for name, shape in shapes.items():
        bytes_of = ITEM_BYTES * math.prod(shape)
        if group and size + bytes_of > shard_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += bytes_of
    if group:
        yield group


def _drawn(name: str, shape: tuple[int, ...], generator: Any) -> Any:
    """Products of them neither vanish nor explode: variance 1 / inputs, norms of one, small
    biases."""
    import torch

    tensor = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    if len(shape) == 1 and not name.endswith("bias"):
        return tensor.fill_(1).cpu()
    deviation = BIAS_DEVIATION if len(shape) == 1 else (math.prod(shape) // shape[0]) ** -0.5
    return tensor.normal_(std=deviation, generator=generator).cpu()
