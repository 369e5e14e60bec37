"""transformers' own Qwen2.5-VL with random weights, and what it is asked: the independent side of
every comparison of the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.initialization import no_init_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)  # preprocessor_config.json of the published models
STD = (0.26862954, 0.26130258, 0.27577711)
VIDEO_TOKEN = {"tiny": 6, "3b-widths": 151656}
SIZES = {
    "tiny": {
        "vision": {
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "window_size": 56,
            "out_hidden_size": 128,
        }
        | {"fullatt_block_indexes": [1, 3], "tokens_per_second": 1},
        "text": {
            "vocab_size": 96,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
        | {
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 6, 6],
            }
        },
    },
    "3b-widths": {
        "vision": {
            "depth": 2,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "window_size": 112,
            "out_hidden_size": 2048,
        }
        | {"fullatt_block_indexes": [1], "tokens_per_second": 2},
        "text": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
        }
        | {
            "num_key_value_heads": 2,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "eos_token_id": 151645,
            "pad_token_id": 151643,
        }
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            }
        },
    },
}


def write_random_checkpoint(
    folder: Path,
    size: str,
    seed: int,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "4GB",
    vision: dict | None = None,
    text: dict | None = None,
) -> None:
    """Saves a Hugging Face directory of random weights.

    size: "tiny", or "3b-widths": the widths and the vocabulary of the 3B model, with two layers
    each. vision, text: changes to vision_config and text_config.
    """
    parts = SIZES[size]
    config = Qwen2_5_VLConfig(
        vision_config=parts["vision"] | (vision or {}),
        text_config=parts["text"] | (text or {}),
        video_token_id=VIDEO_TOKEN[size],
        image_token_id=VIDEO_TOKEN[size] - 1,
        tie_word_embeddings=tied,
    )
    with no_init_weights():
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    model.tie_weights()  # where the configuration says so
    _randomise(model, seed)
    end, pad = parts["text"]["eos_token_id"], parts["text"]["pad_token_id"]
    model.generation_config = GenerationConfig(
        eos_token_id=[end, pad], pad_token_id=pad, do_sample=False
    )
    model.save_pretrained(folder, max_shard_size=shard_size)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing()))


def preprocessing() -> dict:
    side = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 28 * 28,
        "max_pixels": 12845056,
    }
    return {
        "image_mean": MEAN,
        "image_std": STD,
        "image_processor_type": "Qwen2VLImageProcessor",
        **side,
    }


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Every parameter matters: no zero biases, no norms of one. From random bytes, because they are
    quick."""
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            steps = torch.frombuffer(
                bytearray(random.bytes(parameter.numel())), dtype=torch.int8
            ).reshape(parameter.shape)
            even = parameter.copy_(steps).div_(128)  # evenly over -1 to 1
            if parameter.ndim > 1:
                even.mul_((3 / parameter[0].numel()) ** 0.5)  # variance 1 / fan-in
            else:
                even.mul_(0.3).add_(0 if name.endswith("bias") else 1)


def load_reference(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def random_frames(units: int, height: int, width: int, seed: int) -> Tensor:
    return torch.randint(
        0,
        256,
        (2 * units, height, width, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


def pixel_values(frames: Tensor) -> tuple[Tensor, Tensor]:
    """frames [2U,H,W,3] uint8 -> patches and grid as transformers' processor hands them to the
    model: merged blocks row-major, in a block patches row-major, in a patch channel, frame, row,
    column."""
    pixels = ((frames.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    rows, columns = frames.shape[1] // 14, frames.shape[2] // 14
    patches = [
        pixels[2 * unit : 2 * unit + 2, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
        .transpose(0, 1)
        .reshape(-1)
        for unit in range(len(frames) // 2)
        for block_y in range(0, rows, 2)
        for block_x in range(0, columns, 2)
        for y in (block_y, block_y + 1)
        for x in (block_x, block_x + 1)
    ]
    return torch.stack(patches), torch.tensor([[len(frames) // 2, rows, columns]])


@dataclass(frozen=True)
class Conversation:
    """A prompt, a video and a question; times: the temporal position of each unit, counted from the
    video's first."""

    prompt: list[int]
    frames: Tensor  # [2U,H,W,3] uint8
    times: list[int]
    question: list[int]

    @property
    def grid(self) -> tuple[int, int]:
        return self.frames.shape[1] // 28, self.frames.shape[2] // 28

    def prompt_positions(self) -> Tensor:
        return torch.arange(len(self.prompt)).repeat(3, 1).T

    def unit_positions(self, unit: int) -> Tensor:
        """[P,3]: every unit's t, h and w count from where the prompt ends."""
        rows, columns = self.grid
        return torch.tensor(
            [(self.times[unit], y, x) for y in range(rows) for x in range(columns)]
        ) + len(self.prompt)

    def question_positions(self, more: int = 0) -> Tensor:
        """Text after vision starts one after the greatest position before it."""
        first = len(self.prompt) + max(max(self.times), *(side - 1 for side in self.grid)) + 1
        return torch.arange(first, first + len(self.question) + more).repeat(3, 1).T

    def ids(self, model: Qwen2_5_VLForConditionalGeneration, answer: list[int]) -> list[int]:
        """All tokens up to the answer's last, as transformers has them."""
        tokens = self.grid[0] * self.grid[1] * len(self.times)
        return self.prompt + [model.config.video_token_id] * tokens + self.question + answer

    def reference_logits(
        self, model: Qwen2_5_VLForConditionalGeneration, answer: list[int]
    ) -> Tensor:
        """Logits [V] of the token after `answer`, by transformers, in one pass, its positions
        given."""
        ids = self.ids(model, answer)
        units = [self.unit_positions(unit) for unit in range(len(self.times))]
        positions = torch.cat(
            [self.prompt_positions(), *units, self.question_positions(len(answer))]
        )
        pixels, grid = pixel_values(self.frames)
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor([ids]),
                position_ids=positions.T[:, None],
                pixel_values_videos=pixels,
                video_grid_thw=grid,
                logits_to_keep=1,
                use_cache=False,
            )
        return out.logits[0, -1]

    def reference_answer(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        length: int,
        processors: Sequence[LogitsProcessor] = (),
    ) -> tuple[list[int], Tensor]:
        """Greedy tokens and the logits [length,V] that they were chosen from. processors: change
        the logits before."""
        answer: list[int] = []
        rows = []
        for _ in range(length):
            logits = self.reference_logits(model, answer)[None]
            for processor in processors:
                logits = processor(torch.tensor([self.ids(model, answer)]), logits)
            rows.append(logits[0])
            answer.append(int(rows[-1].argmax()))
        return answer, torch.stack(rows)
