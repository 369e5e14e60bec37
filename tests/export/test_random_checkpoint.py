"""The command that writes a checkpoint of random weights in the layout of a published model."""

import json
import shutil
from types import SimpleNamespace

import pytest

from vicort.export import random_checkpoint
from vicort.export.checkpoint import TINY, resolve
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.random_checkpoint import PUBLISHED, PublishedShape, main

SMALL = PublishedShape(
    {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    | {"window_size": 112, "fullatt_block_indexes": [0], "tokens_per_second": 2},
    {"vocab_size": 128, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    | {"rms_norm_eps": 1e-6},
    tied=True,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "3b", SMALL)


def refused(capsys, *arguments):
    capsys.readouterr()  # progress of earlier calls
    assert main([str(each) for each in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_published_models_have_as_many_parameters_as_their_cards_say():
    assert PUBLISHED["7b"].parameters == 8_292_166_656


def test_it_writes_what_vicort_build_reads(tmp_path):
    assert main([str(tmp_path / "new" / "3b")]) == 0
    found = read_configuration(tmp_path / "new" / "3b")
    assert (found.language.width, found.vision.depth, found.language.tied) == (256, 1, True)
    names = {path.name for path in (tmp_path / "new" / "3b").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"} <= names


def test_with_a_tokenizer_its_control_tokens_are_the_configurations(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    text = json.loads((resolve(TINY) / "tokenizer.json").read_text())
    shutil.copy(resolve(TINY) / "tokenizer.json", own)
    ids = {token["content"]: token["id"] for token in text["added_tokens"]}
    assert main([str(tmp_path / "3b"), "--tokenizer", str(own)]) == 0
    found = read_configuration(tmp_path / "3b")
    assert found.video_token == ids["<|video_pad|>"]
    assert found.eos_tokens == (ids["<|im_end|>"],)


def test_what_is_there_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is there already: remove it, or name a new folder" in refused(capsys, tmp_path)
    assert main([str(tmp_path / "3b")]) == 0
    assert "is there already" in refused(capsys, tmp_path / "3b", "--size", "7b")


def test_a_disk_that_is_too_small_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        random_checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000)
    )
    assert "takes 0.0 GB, and its disk has 0.0 GB free" in refused(capsys, tmp_path / "3b")
    assert not (tmp_path / "3b").exists()


def test_a_tokenizer_of_another_model_is_refused_first(tmp_path, capsys):
    assert "tokenizer.json is missing" in refused(capsys, tmp_path / "3b", "--tokenizer", tmp_path)
    text = (resolve(TINY) / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<|video_pad|>", "<|film|>"))
    line = refused(capsys, tmp_path / "3b", "--tokenizer", tmp_path)
    assert "has no token <|video_pad|>: name the tokenizer of a Qwen2.5-VL" in line
    assert not (tmp_path / "3b").exists()
