"""The model's own sampling, as its generation_config.json has it."""

import json

import pytest

from vicort.runtime.core import Sampling
from vicort.runtime.errors import EngineError
from vicort.runtime.language.generation_config import read_generation

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
# of Qwen/Qwen2.5-VL-3B-Instruct
QWEN = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}


def written(folder, content):
    (folder / "generation_config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (QWEN, Sampling(0.000001, 1.0, 50, 1.05)),
        (QWEN | {"do_sample": False}, Sampling(0.0, 1.0, 0, 1.05)),
        ({"do_sample": True, "top_p": 0.8, "top_k": 20}, Sampling(1.0, 0.8, 20, 1.0)),
        ({"do_sample": True, "top_k": 0, "temperature": None}, Sampling(1.0, 1.0, 0, 1.0)),
        ({"top_p": 0.8, "top_k": 20}, Sampling(0.0, 0.8, 20, 1.0)),  # for one who asks to sample
        ({"temperature": 0.7}, GREEDY),  # without do_sample, transformers is greedy too
        ({}, GREEDY),
    ],
)
def test_what_the_file_says_is_taken(tmp_path, content, expected):
    assert read_generation(written(tmp_path, content)) == expected


def test_transformers_reads_the_same(tmp_path):
    from transformers import GenerationConfig

    for content in (QWEN, {"do_sample": True, "temperature": 0.5, "top_p": 0.9}):
        theirs = GenerationConfig.from_pretrained(written(tmp_path, content))
        ours = read_generation(tmp_path)
        assert (ours.temperature, ours.top_p or 1.0) == (theirs.temperature, theirs.top_p or 1.0)
        assert ours.repetition_penalty == (theirs.repetition_penalty or 1.0)
        assert ours.top_k == (50 if theirs.top_k is None else theirs.top_k)


def test_a_model_without_the_file_is_greedy(tmp_path):
    assert read_generation(tmp_path) == GREEDY


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"do_sample": True, "temperature": -1}, "temperature is -1"),
        ({"repetition_penalty": "much"}, "repetition_penalty is 'much'"),
        ({"top_p": 7}, "top_p is 7"),
        ("[1]", r"it is \[1\]"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content, words):
    with pytest.raises(EngineError, match=words) as refused:
        read_generation(written(tmp_path, content))
    assert "\n" not in str(refused.value)
