"""The embedded checkpoint: a Hugging Face directory that loads untouched, is small, and answers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_reels import MIXED, mixed_reel, reel_of
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from vicort.export.tiny.batches import BatchRecipe, Composer, gather
from vicort.export.tiny.evaluate import ReferenceReader, load_model
from vicort.export.tiny.model import (
    CHECKPOINT,
    encode_units,
    faster_attention,
    new_model,
    patches,
    save_checkpoint,
)
from vicort.export.tiny.reels import Reel
from vicort.export.tiny.tokenizer import PROMPT, VOCABULARY, make_tokenizer
from vicort.export.tiny.train import STAGES, forward, stage_at
from vicort.export.tiny.video import read_units
from vicort.export.tiny.world import MOST, SHAPES, make_stream
from vicort.export.tiny.world_questions import all_questions

torch.set_num_threads(1)
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    return load_model()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def unit_times(reel: Reel) -> list[Fraction]:
    """Seconds of the first frame of each unit."""
    return [Fraction(time) for time in reel.times[:, 0].tolist()]


def test_checkpoint_is_complete_and_small() -> None:
    assert {*FILES, "preprocessor_config.json"} == {path.name for path in CHECKPOINT.iterdir()}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 10e6


def test_checkpoint_loads_without_missing_or_unexpected_weights() -> None:
    _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        CHECKPOINT, output_loading_info=True
    )
    assert not any(
        info[key]
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if key in info
    )


def test_special_tokens_are_where_the_configuration_says() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for name in ("image", "video"):
        assert config[f"{name}_token_id"] == tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
    for name in ("vision_start", "vision_end"):
        assert config[f"{name}_token_id"] == tokenizer.convert_tokens_to_ids(f"<|{name}|>")
    assert config["text_config"]["vocab_size"] == len(tokenizer) == len(VOCABULARY)
    assert tokenizer.eos_token_id == config["text_config"]["eos_token_id"]
    assert (
        json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
        == tokenizer.eos_token_id
    )


@given(st.sampled_from(SHAPES), st.sampled_from(["?", " ?", "", "??", "?!", "."]), st.booleans())
def test_a_question_ends_with_its_last_word(shape: str, mark: str, shout: bool) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    text = f"What color was the {shape}{mark}"
    tokens = tokenizer.encode(text.upper() if shout else text).tokens
    assert tokens == ["what", "color", "was", "the", shape]


@given(st.lists(st.sampled_from(VOCABULARY[8:]), min_size=1, max_size=12))
def test_words_survive_the_tokenizer(words: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    ids = tokenizer.encode(" ".join(words)).ids
    assert len(ids) == len(words)
    assert tokenizer.decode(ids) == " ".join(words)


@given(seed=st.integers(0, 10**6), objects=st.integers(0, MOST))
def test_questions_and_answers_are_in_words_that_the_tokenizer_knows(
    seed: int, objects: int
) -> None:
    known = make_tokenizer()
    stream = make_stream(seed, objects, plan=MIXED)
    now = stream.at(stream.things[-1].start) if objects else ()
    for asked in all_questions(stream.things, now):
        question = known.encode(asked.question)
        assert "<|unknown|>" not in question.tokens
        assert question.tokens == asked.question.rstrip("?").split()
        assert known.decode(known.encode(asked.answer).ids) == asked.answer


def test_a_saved_checkpoint_loads_as_it_was(tmp_path: Path) -> None:
    made = new_model(seed=3)
    save_checkpoint(made, tmp_path)
    loaded = load_model(tmp_path).state_dict()
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=2**-8, atol=0)
    known = AutoTokenizer.from_pretrained(tmp_path)
    assert len(known) == len(VOCABULARY) == made.config.text_config.vocab_size
    assert {*FILES, "preprocessor_config.json"} == {path.name for path in tmp_path.iterdir()}


def test_unknown_words_are_one_token_each() -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert tokenizer.encode("what is a zebra").tokens == ["what", "is", "a", "<|unknown|>"]


def test_template_puts_the_video_first_and_ends_with_the_question() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    turn = {
        "role": "user",
        "content": [{"type": "video"}, {"type": "text", "text": "what color was the circle?"}],
    }
    text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    assert text == PROMPT + "<|video_pad|><|vision_end|>what color was the circle?"
    answered = [
        turn,
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "what shape was green?"},
    ]
    text = tokenizer.apply_chat_template(answered, tokenize=False, add_generation_prompt=True)
    assert (
        text
        == PROMPT
        + "<|video_pad|><|vision_end|>what color was the circle?red<|im_end|><|im_start|>"
        + "what shape was green?"
    )


def test_patches_equal_the_processor_of_transformers() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (112, 112, 3), np.uint8)
    expected = Qwen2VLImageProcessorPil.from_pretrained(CHECKPOINT)(
        images=[image], return_tensors="np"
    )["pixel_values"]
    ours = patches(torch.from_numpy(np.stack([image, image])[None]))
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-6)


def test_faster_attention_changes_nothing() -> None:
    """Vision in equal windows at once, and causal attention in blocks, against transformers'
    own."""
    rng = np.random.default_rng(0)
    reel = mixed_reel(1, objects=3, drawn=True)
    recipe = BatchRecipe(
        streams=3,
        questions=4,
        things=(1, 3),
        far=1.0,
        bounded=0.5,
        drops=0.5,
        retrieval=0.5,
        turns=0.5,
    )
    plain, fast = new_model(0), new_model(0)
    faster_attention(fast)
    shown, episodes = gather(rng, [reel], recipe)
    frames = torch.from_numpy(np.ascontiguousarray(shown))
    with torch.no_grad():
        features = encode_units(plain, frames)
        torch.testing.assert_close(encode_units(fast, frames), features, atol=1e-5, rtol=1e-4)
        batch = Composer(recipe).compose(rng, episodes, features.numpy())
        expected, labels_, _ = forward(plain, batch, features.flatten(0, 1))
        ours, _, _ = forward(fast, batch, features.flatten(0, 1))
    assert len(labels_) > 10
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_stages_follow_each_other() -> None:
    total = sum(stage.steps for stage in STAGES)
    assert stage_at(0) == (STAGES[0], 0.0)
    assert stage_at(STAGES[0].steps)[0] is STAGES[1]
    assert stage_at(total - 1)[0] is STAGES[-1]
    assert stage_at(total) is None


def test_reading_in_pieces_changes_nothing(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    reel = mixed_reel(10_000_001, objects=2, drawn=True)
    whole, pieces = ReferenceReader(model, tokenizer), ReferenceReader(model, tokenizer)
    whole.watch(reel.units, unit_times(reel))
    for index, time in enumerate(unit_times(reel)):
        pieces.watch(reel.units[index : index + 1], [time])
    questions = [f"what color was the {shape}?" for shape in SHAPES]
    assert whole.answer(questions) == pieces.answer(questions)
    assert whole.answer(questions[:1]) == whole.answer(questions)[:1]


def test_the_model_answers_on_streams_it_never_saw(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    right = []
    for seed in range(10_100_000, 10_100_006):
        reel = reel_of(make_stream(seed, 6, aspect=4 / 3), drawn=True)
        reader = ReferenceReader(model, tokenizer)
        reader.watch(reel.units, unit_times(reel))
        answers = reader.answer([f"what color was the {thing.shape}?" for thing in reel.things])
        right += [answer == thing.color for answer, thing in zip(answers, reel.things, strict=True)]
    assert len(right) == 36
    assert np.mean(right) >= 0.9


def test_demo_clip_is_what_its_sidecar_says(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    folder = Path(__file__).parents[1] / "fixtures"
    sidecar = json.loads((folder / "shapes.json").read_text())
    assert (folder / "shapes.mp4").stat().st_size <= 200_000
    units, times = read_units(folder / "shapes.mp4")
    reader = ReferenceReader(model, tokenizer)
    reader.watch(units, times[::2])
    asked = [each for each in sidecar["questions"] if each["at"] is None]
    answers = reader.answer([each["question"] for each in asked])
    assert answers == [each["answer"] for each in asked]
