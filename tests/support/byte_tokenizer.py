"""A small tokenizer of the published models' kind: bytes, merges, and tokens that are no text."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from vicort.export.tiny.tokenizer import CHAT_TEMPLATE

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
VIDEO = "<|video_pad|>"
ADDED = "<tool_call>"  # in the vocabulary, in brackets, and not flagged as special
WIDTH = 448  # of the logits: the tokenizer has fewer tokens
SEEN = [
    json.dumps({"color": "red", "count": 12, "seen": True, "names": ["a", "b"]}),
    "yes no yes, no. there is a red circle and there was none before",
]


def byte_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(name, special=True) for name in (*SPECIAL, VIDEO)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SEEN, trainer)
    tokenizer.add_tokens([AddedToken(ADDED, special=False)])
    return tokenizer


def save_byte_tokenizer(folder: Path) -> Tokenizer:
    """Into a folder that `Prompt` reads."""
    tokenizer = byte_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer
