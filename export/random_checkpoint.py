"""A checkpoint of random weights, of any size: made a tensor at a time on a device, and written in
Hugging Face layout.

    python -m vicort.export.random_checkpoint --size 3b DIR

For timing, which does not depend on the values of the weights, and for trying what a machine can
run before a model is downloaded. Its answers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny.model import CHECKPOINT as TINY
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.errors import ConfigError, VicortError
from vicort.runtime.safe_text import print_safely, printable
from vicort.runtime.work_folders import check_new, work_folder

SHARD_BYTES = 1_000_000_000  # of a file; one of them lies in memory at a time
ITEM_BYTES = 2  # bfloat16
INDEX = "model.safetensors.index.json"
BIAS_DEVIATION = 0.02
SIDE = 308  # pixels of a frame, as `configs/models` has it for these models
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
SECTIONS, THETA = (16, 24, 24), 1e6  # of the published models' rotary embedding
# config.json of Qwen/Qwen2.5-VL-3B-Instruct; the 7B model's is the same but for out_hidden_size
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
POSITIONS = {"max_position_embeddings": 128_000, "rms_norm_eps": 1e-6}


@dataclass(frozen=True)
class PublishedShape:
    """The shapes of a published model."""

    vision: dict[str, Any]
    text: dict[str, Any]
    tied: bool  # whether the output head is the token embedding

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.vision, self.text, THETA, SECTIONS) | {
            "tie_word_embeddings": self.tied
        }

    @property
    def parameters(self) -> int:
        """How many there are."""
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**self.config))
        model.tie_weights()
        return sum(parameter.numel() for parameter in model.parameters())


PUBLISHED = {
    "3b": PublishedShape(  # config.json of Qwen/Qwen2.5-VL-3B-Instruct
        VISION,
        {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            **POSITIONS,
        },
        tied=True,
    ),
    "7b": PublishedShape(  # config.json of Qwen/Qwen2.5-VL-7B-Instruct
        VISION,
        {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            **POSITIONS,
        },
        tied=False,
    ),
}


def write_random(
    folder: Path,
    config: dict,
    side: int,
    device: str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[int], object] = lambda size: None,
) -> Path:
    """Writes bfloat16 weights to `folder` unless they are there, and returns it.

    config: of a Qwen2.5-VL, as `config_of` gives it. side: pixels of a frame. device:
    where numbers are drawn, as PyTorch calls it. written: called with the bytes of each file.
    """
    if (folder / INDEX).is_file():
        return folder

    check_new(folder)
    with work_folder(folder.parent) as work:
        partial = work / "checkpoint"
        partial.mkdir()
        _write_random(partial, config, side, device, shard_bytes, written)
        check_new(folder)
        partial.rename(folder)
    return folder


def _write_random(
    partial: Path,
    config: dict,
    side: int,
    device: str,
    shard_bytes: int,
    written: Callable[[int], object],
) -> None:
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
        written((partial / file).stat().st_size)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = ArgumentParser("python -m vicort.export.random_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--size", choices=PUBLISHED, default="3b", help="(default: %(default)s)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="folder with the model's tokenizer.json (default: the embedded model's)",
    )
    try:
        typed = parser.parse_args(arguments)
        _write(typed.folder, PUBLISHED[typed.size], typed.tokenizer)
    except VicortError as error:
        print_safely(f"random_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _write(folder: Path, shape: PublishedShape, tokenizer: Path | None) -> None:
    """Raises ConfigError if the folder is there already, or its disk has too little space."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: remove it, or name a new folder")
    config = shape.config
    ids = _special_tokens(tokenizer) if tokenizer else {}
    total = shape.parameters * ITEM_BYTES
    parent = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    if (free := shutil.disk_usage(parent).free) < total:
        raise ConfigError(
            f"{folder} takes {total / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB free: name "
            "a folder on another disk"
        )
    if tokenizer:
        config["video_token_id"], config["image_token_id"] = (
            ids["<|video_pad|>"],
            ids["<|image_pad|>"],
        )
        config["text_config"]["eos_token_id"] = ids["<|im_end|>"]
    with tqdm(total=total, unit="B", unit_scale=True, desc=printable(folder.name)) as bar:
        write_random(folder, config, SIDE, written=bar.update)
    if tokenizer:
        shutil.copy(tokenizer / "tokenizer.json", folder)
        (folder / "tokenizer_config.json").unlink()
        generation = {"eos_token_id": ids["<|im_end|>"], "do_sample": False}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def _special_tokens(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path} is missing: name a folder with the model's tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    ids = {}
    for token in ("<|video_pad|>", "<|image_pad|>", "<|im_end|>"):
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ConfigError(f"{path} has no token {token}: name the tokenizer of a Qwen2.5-VL")
        ids[token] = number
    return ids


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
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    if len(shape) == 1 and not name.endswith("bias"):
        return tensor.fill_(1).cpu()
    deviation = BIAS_DEVIATION if len(shape) == 1 else (math.prod(shape) // shape[0]) ** -0.5
    return tensor.normal_(std=deviation, generator=generator).cpu()


def config_of(vision: dict, text: dict, theta: float, sections: Sequence[int]) -> dict:
    """The tiny model's configuration with other sizes; special tokens stay its own, so that its
    tokenizer fits."""
    config = _read_json(TINY / "config.json")
    for key in ("architectures", "model_type", "transformers_version", "dtype"):
        config.pop(key, None)
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}
    config["vision_config"] |= vision | {"out_hidden_size": text["hidden_size"]}
    config["text_config"] |= text | {"rope_parameters": rope, "layer_types": None}
    return config


def write_companions(folder: Path, side: int) -> None:
    """Beside random weights: the tiny model's tokenizer and template, and preprocessing under the
    area of `side` by `side` pixels."""
    for name in COPIED:
        shutil.copy(TINY / name, folder / name)
    preprocessing = _read_json(TINY / "preprocessor_config.json") | {
        "min_pixels": 56 * 56,
        "max_pixels": side * side,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
