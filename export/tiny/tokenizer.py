"""The tiny model's tokenizer and chat template: one token per word.

The normaliser lowers the case and removes punctuation, so a question ends with its last word: "what
color was the circle?" ends with "circle", and its logits give the answer. For the same reason
nothing follows the question, not even a generation prompt.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from vicort.export.tiny.world import COLORS, NONE, NOTHING, NUMBERS, SHAPES, WAYS, plural

UNKNOWN = "<|unknown|>"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    UNKNOWN,
)
QUESTION_WORDS = """
what which how many was is were are there now a an the color shape shapes came come first last
after before way went go did do does to of in on and or it this that thing things object objects
video frame see you its please tell me describe where when who why moved moving seen shown more
ever at all time
"""
PLURALS = [plural(shape) for shape in SHAPES]
ANSWER_WORDS = [*COLORS, *SHAPES, *WAYS, *NUMBERS, NOTHING, NONE, "yes", "no", *PLURALS]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *QUESTION_WORDS.split(), *ANSWER_WORDS]))

PROMPT = "<|im_start|><|vision_start|>"  # the template's text before the video

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role != 'assistant' -%}<|im_start|>{%- endif -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{ part.text }}
{%- elif part.type in ('video', 'image') -%}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role != 'user' -%}<|im_end|>{%- endif -%}
{%- endfor -%}
"""


def make_tokenizer() -> Tokenizer:
    """A word-level tokenizer; unknown words become `<|unknown|>`."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[?.!,;:\"]"), " "),
            normalizers.Replace("colour", "color"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL]
    )
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for Hugging Face's
    loaders."""
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
