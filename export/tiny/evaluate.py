"""Accuracy of the tiny model on held-out streams, through encoded files.

    python -m vicort.export.tiny.evaluate --out export/tiny/evaluation.json

It runs transformers' class with vicort's positions and full history: the reference for the
pipeline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from vicort.export.tiny.evaluation_files import (
    HELD_OUT,
    SETTINGS,
    EvaluationSetting,
    questions_about_now,
    questions_at_end,
    write_evaluation_file,
)
from vicort.export.tiny.model import (
    CHECKPOINT,
    GRID,
    TOKENS_PER_SECOND,
    UNIT_TOKENS,
    batched_windows,
    encode_units,
)
from vicort.export.tiny.tokenizer import PROMPT
from vicort.export.tiny.video import read_units
from vicort.export.tiny.world_questions import Asked
from vicort.runtime.core import UNIT_FRAMES

PIECE = 64  # units per run: the answers do not depend on it
MAX_ANSWER_TOKENS = 6  # tokens


def load_model(folder: Path = CHECKPOINT) -> Qwen2_5_VLForConditionalGeneration:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    batched_windows(model)
    return model


class ReferenceReader:
    """Reads one stream and answers questions about it. A question does not change the cache."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = DynamicCache()
        prompt = self.tokenizer.encode(PROMPT).ids
        self.prompt, self.next_position = len(prompt), len(prompt)
        self.first_time: Fraction | None = None
        self._run(
            self._embed(prompt),
            np.tile(np.arange(len(prompt)), (3, 1)),
            np.tril(np.ones((len(prompt),) * 2, bool)),
        )

    @torch.inference_mode()
    def watch(self, frames: np.ndarray, times: Sequence[Fraction]) -> None:
        """frames [U, 2, 112, 112, 3] uint8; times: seconds of the U units' first frames."""
        first = self.first_time = times[0] if self.first_time is None else self.first_time
        for start in range(0, len(frames), PIECE):
            piece = torch.from_numpy(np.ascontiguousarray(frames[start : start + PIECE]))
            t = np.array(
                [int((time - first) * TOKENS_PER_SECOND) for time in times[start : start + PIECE]]
            ).repeat(UNIT_TOKENS)
            row, column = np.divmod(np.tile(np.arange(UNIT_TOKENS), len(piece)), GRID)
            positions = self.prompt + np.stack([t, row, column])
            past, new = self.cache.get_seq_length(), len(t)
            mask = np.arange(past + new)[None, :] <= past + np.arange(new)[:, None]
            self._run(encode_units(self.model, piece).flatten(0, 1), positions, mask)
            self.next_position = max(self.next_position, int(positions.max()) + 1)

    @torch.inference_mode()
    def answer(self, questions: Iterable[str]) -> list[str]:
        """Greedy answers of all questions in one batch, independent of each other."""
        end = self.tokenizer.token_to_id("<|im_end|>")
        asked: list[list[int]] = [
            self.tokenizer.encode("<|vision_end|>" + question).ids for question in questions
        ]
        texts = [list(question) for question in asked]
        for _ in range(MAX_ANSWER_TOKENS):
            for text, token in zip(texts, self._next_tokens(texts), strict=True):
                if text[-1] != end:
                    text.append(token)
            if all(text[-1] == end for text in texts):
                break
        return [
            self.tokenizer.decode(text[len(question) :])
            for text, question in zip(texts, asked, strict=True)
        ]

    def _next_tokens(self, texts: list[list[int]]) -> list[int]:
        past = self.cache.get_seq_length()
        fork = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        inner = np.concatenate([np.arange(len(text)) for text in texts])
        own = (fork[:, None] == fork[None, :]) & np.tri(len(fork), dtype=bool)
        mask = np.concatenate([np.ones((len(fork), past), bool), own], 1)
        hidden = self._run(
            self._embed([token for text in texts for token in text]),
            np.tile(self.next_position + inner, (3, 1)),
            mask,
        )
        self.cache.crop(past - self.cache.get_seq_length())
        last = np.cumsum([len(text) for text in texts]) - 1
        return self.model.lm_head(hidden[last]).argmax(-1).tolist()

    def _embed(self, tokens: list[int]) -> Tensor:
        return self.model.get_input_embeddings()(torch.tensor(tokens))

    @torch.inference_mode()
    def _run(self, embedded: Tensor, positions: np.ndarray, mask: np.ndarray) -> Tensor:
        """embedded [N, width], positions [3, N], mask [N, past + N] bool -> hidden states [N,
        width]; the cache grows."""
        output = self.model.model.language_model(
            inputs_embeds=embedded[None],
            position_ids=torch.from_numpy(np.ascontiguousarray(positions))[:, None],
            attention_mask={"full_attention": torch.from_numpy(mask)[None, None]},
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[0]


def ask_about(
    reader: ReferenceReader, setting: EvaluationSetting, seed: int, folder: Path, fps: float
) -> list[tuple[Asked, str]]:
    """One stream of a setting, through a file of which `fps` frames a second are seen: every
    question with the model's answer."""
    path = folder / f"stream.{setting.container}"
    stream = write_evaluation_file(path, setting, seed)
    units, times = read_units(path, fps)
    answered, seen = [], 0
    for at, asked in questions_about_now(stream):
        complete = sum(time <= at for time in times) // UNIT_FRAMES
        _watch(reader, units, times, seen, complete)
        seen = complete
        answered.append((asked, *reader.answer([asked.question])))
    _watch(reader, units, times, seen, len(units))
    asked_last = questions_at_end(stream)
    answers = reader.answer(asked.question for asked in asked_last)
    return answered + list(zip(asked_last, answers, strict=True))


def _watch(
    reader: ReferenceReader, units: np.ndarray, times: list[Fraction], first: int, end: int
) -> None:
    if end > first:
        reader.watch(units[first:end], times[UNIT_FRAMES * first : UNIT_FRAMES * end : UNIT_FRAMES])


def measure(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
    setting: EvaluationSetting,
    streams: int,
    fps: float = 2.0,
) -> dict[str, dict[str, float | int]]:
    """Accuracy per kind of question. fps: frames a second that are seen. Questions about absent
    things are counted separately, as "… (none)"."""
    right: dict[str, list[bool]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(streams):
            reader = ReferenceReader(model, tokenizer)
            for asked, answer in ask_about(reader, setting, HELD_OUT + index, Path(folder), fps):
                absent = asked.about is None and asked.kind in ("color", "shape", "any")
                right[asked.kind + (" (none)" if absent else "")].append(answer == asked.answer)
    return {
        kind: {"accuracy": round(float(np.mean(each)), 4), "asked": len(each)}
        for kind, each in right.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--streams", type=int, default=20, help="streams per setting")
    parser.add_argument(
        "--only",
        default="",
        help="only settings with this name prefix; the others in OUT are kept",
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.checkpoint)
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    results = {}
    if arguments.out and arguments.out.exists():
        kept, names = json.loads(arguments.out.read_text()), {each.name for each in SETTINGS}
        results = {name: result for name, result in kept.items() if name in names}
    for setting in SETTINGS:
        if setting.name.startswith(arguments.only):
            results[setting.name] = measure(model, tokenizer, setting, arguments.streams)
            print(
                setting.name,
                {kind: each["accuracy"] for kind, each in results[setting.name].items()},
                flush=True,
            )
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
