"""A random checkpoint with the files that a published one has beside its weights.

    python -m vicort.benchmarks.real_size.published_layout build/3b build/3b-published

optimum-intel, which converts a checkpoint for OpenVINO GenAI, reads the tokenizer's and the
processor's configuration; vicort does without them. Weights are linked, not copied.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.checkpoints import read_json
from vicort.runtime.command_line import ArgumentParser
from vicort.runtime.errors import ConfigError, VicortError
from vicort.runtime.frame_grid import MIN_TOKENS

TOKEN_KEYS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
VISION_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = ArgumentParser(
        "python -m vicort.benchmarks.real_size.published_layout", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="new folder")
    try:
        options = parser.parse_args(arguments)
        write_published(options.checkpoint, options.folder)
    except VicortError as error:
        print(f"published_layout: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write_published(checkpoint: Path, folder: Path) -> None:
    """Raises ConfigError if the checkpoint lacks a file, or the folder is there already."""
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        if not (checkpoint / name).is_file():
            raise ConfigError(f"{checkpoint / name} is missing: name a folder with a checkpoint")
    if folder.exists():
        raise ConfigError(f"{folder} is there already: remove it, or name a new folder")
    files = _files(checkpoint)
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name not in files:
            (folder / path.name).symlink_to(path.resolve())
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def _files(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Content of the files that are not linked."""
    added = read_json(checkpoint / "tokenizer.json")["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    config = read_json(checkpoint / "config.json")
    config |= {key: ids[token] for key, token in VISION_IDS.items() if token in ids}
    images = read_json(checkpoint / "preprocessor_config.json")
    side = images["patch_size"] * images["merge_size"]
    images |= {"min_pixels": MIN_TOKENS * side**2, "processor_class": "Qwen2_5_VLProcessor"}
    videos = {key: value for key, value in images.items() if key != "image_processor_type"} | {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "size": {"shortest_edge": images["min_pixels"], "longest_edge": images["max_pixels"]},
    }
    tokenizer = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in TOKEN_KEYS} for token in added
        },
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": config["text_config"]["max_position_embeddings"],
    }
    return {
        "config.json": config,
        "preprocessor_config.json": images,
        "video_preprocessor_config.json": videos,
        "tokenizer_config.json": tokenizer,
    }


if __name__ == "__main__":
    sys.exit(main())
