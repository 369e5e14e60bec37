"""The files that optimum-intel reads beside the weights of a random checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from vicort.benchmarks.common.checkpoints import TINY, read_json
from vicort.benchmarks.real_size.published_layout import main


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As `random_checkpoint --tokenizer` leaves it: without tokenizer_config.json."""
    folder = tmp_path / "random"
    shutil.copytree(TINY, folder)
    (folder / "tokenizer_config.json").unlink()
    return folder


def test_other_tools_find_what_a_published_checkpoint_has(checkpoint, tmp_path):
    target = tmp_path / "new" / "published"
    assert main([str(checkpoint), str(target)]) == 0
    assert (target / "model.safetensors").resolve() == checkpoint / "model.safetensors"
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert (
        tokenizer.convert_tokens_to_ids("<|video_pad|>")
        == AutoConfig.from_pretrained(target).video_token_id
    )
    images = read_json(target / "preprocessor_config.json")
    videos = read_json(target / "video_preprocessor_config.json")
    assert images["processor_class"] == "Qwen2_5_VLProcessor"
    assert videos["size"] == {
        "shortest_edge": images["min_pixels"],
        "longest_edge": images["max_pixels"],
    }
    assert "image_processor_type" not in videos


def test_ids_of_the_vision_tokens_are_those_of_the_tokenizer(checkpoint, tmp_path):
    config = read_json(checkpoint / "config.json")
    wrong = config | {"vision_start_token_id": 1000, "vision_end_token_id": 1001}
    (checkpoint / "config.json").write_text(json.dumps(wrong))
    assert main([str(checkpoint), str(tmp_path / "new")]) == 0
    found = read_json(tmp_path / "new" / "config.json")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert found["vision_start_token_id"] == tokenizer.convert_tokens_to_ids("<|vision_start|>")
    assert found["vision_end_token_id"] == tokenizer.convert_tokens_to_ids("<|vision_end|>")
    assert read_json(checkpoint / "config.json") == wrong  # the source stays as it is


def test_what_cannot_be_done_is_one_line(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), str(tmp_path)]) == 2
    assert "is there already: remove it" in capsys.readouterr().err
    (checkpoint / "tokenizer.json").unlink()
    assert main([str(checkpoint), str(tmp_path / "new")]) == 2
    assert "tokenizer.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
