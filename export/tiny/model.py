"""The tiny model's configuration, and its training form: transformers' class with given positions.

`batched_windows` computes the same attention as transformers' loop over windows, in one batch.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    AttentionInterface,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from vicort.export.tiny.tokenizer import VOCABULARY, save_tokenizer
from vicort.runtime.core import UNIT_FRAMES

SIDE = 112  # pixels, of the square frame
PATCH = 14  # pixels
MERGE = 2  # patches per side of one visual token
GRID = SIDE // PATCH // MERGE  # visual tokens per side
UNIT_TOKENS = GRID * GRID
TOKENS_PER_SECOND = 1  # steps of t per second: one per unit at 2 frames per second
MAX_POSITION = 2048
INITIAL = 0.06  # standard deviation of new weights; the usual 0.02 is small for a width of 128
MEAN = (0.48145466, 0.4578275, 0.40821073)  # as in Qwen2.5-VL
STD = (0.26862954, 0.26130258, 0.27577711)
ATTENTION_BLOCK = 128  # queries
CHECKPOINT = Path(__file__).parent / "checkpoint"


def token_id(token: str) -> int:
    return VOCABULARY.index(token)


def tiny_config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "initializer_range": INITIAL,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": UNIT_FRAMES,
            "tokens_per_second": TOKENS_PER_SECOND,
            "window_size": 56,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1, 3],
        },
        text_config={
            "initializer_range": INITIAL,
            "vocab_size": len(VOCABULARY),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_POSITION,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(tiny_config()).float()


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write a checkpoint in Hugging Face layout: bf16 weights, configuration, tokenizer, chat
    template, preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    end, pad = token_id("<|im_end|>"), token_id("<|endoftext|>")
    small = copy.deepcopy(model).bfloat16()
    small.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=False)
    small.save_pretrained(folder)
    # transformers makes it readable for the owner alone
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(folder)
    preprocessing = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": STD,
        "min_pixels": SIDE * SIDE,
        "max_pixels": SIDE * SIDE,
        "patch_size": PATCH,
        "temporal_patch_size": UNIT_FRAMES,
        "merge_size": MERGE,
        "fps": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def patches(frames: Tensor) -> Tensor:
    """Normalised patches in the order of Hugging Face's processor.

    frames [U, 2, 112, 112, 3], uint8 or float of 0 to 255, RGB -> [U * 64, 3 * 2 * 14 * 14]
    float32.
    """
    mean, std = (torch.tensor(values, device=frames.device) for values in (MEAN, STD))
    pixels = (frames.float() / 255 - mean) / std
    # unit, frame, row, sub-row, y, column, sub-column, x, channel
    grid = pixels.reshape(-1, UNIT_FRAMES, GRID, MERGE, PATCH, GRID, MERGE, PATCH, 3)
    return grid.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * UNIT_FRAMES * PATCH * PATCH)


def encode_units(model: Qwen2_5_VLForConditionalGeneration, frames: Tensor) -> Tensor:
    """Visual tokens [U, 16, 128] of units of frames [U, 2, 112, 112, 3]."""
    grid = torch.tensor([[len(frames), SIDE // PATCH, SIDE // PATCH]], device=frames.device)
    features = model.model.visual(patches(frames), grid_thw=grid).pooler_output
    return features.reshape(len(frames), UNIT_TOKENS, -1)


def faster_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Compute the same faster on a CPU: batched windows, causal attention in blocks, and patches
    embedded by one product instead of a convolution."""
    batched_windows(model)
    embed = model.model.visual.patch_embed
    embed.forward = MethodType(_embed_patches, embed)
    AttentionInterface.register("causal_blocks", _attend_in_blocks)
    model.model.language_model.config._attn_implementation = "causal_blocks"


def _embed_patches(self: Qwen2_5_VisionPatchEmbed, hidden_states: Tensor) -> Tensor:
    """hidden_states [patches, channels * frames * height * width] -> [patches, width]."""
    return linear(hidden_states, self.proj.weight.flatten(1))


def _attend_in_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_,
):
    """Causal attention per block of queries, without the masked keys after the block.

    query [B, Hq, S, D]; key, value [B, Hkv, S, D]; attention_mask [B, 1, S, S] bool, lower
    triangular -> [B, S, Hq, D].
    """
    batch, kv_heads, size, _ = key.shape
    grouped = (query * scaling).reshape(batch, kv_heads, -1, size, query.shape[-1]).to(value.dtype)
    key, value, hidden = (
        key[:, :, None].to(value.dtype),
        value[:, :, None],
        ~attention_mask[:, None],
    )
    mixed = []
    for end in range(0, size, ATTENTION_BLOCK):
        rows = slice(end, end + ATTENTION_BLOCK)
        columns = slice(0, rows.stop)
        scores = grouped[:, :, :, rows] @ key[:, :, :, columns].mT
        mixed.append(
            scores.masked_fill(hidden[:, :, :, rows, columns], -1e9).softmax(-1)
            @ value[:, :, :, columns]
        )
    return torch.cat(mixed, 3).reshape(query.shape).transpose(1, 2), None


def batched_windows(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make the vision blocks attend in all windows at once. Windows must have one size, as in
    112x112 frames."""
    for module in model.modules():
        if isinstance(module, Qwen2_5_VLVisionAttention):
            module.forward = MethodType(_attend_in_windows, module)


def _attend_in_windows(
    self: Qwen2_5_VLVisionAttention,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings,
    **_,
) -> Tensor:
    """hidden_states [tokens, width]; cu_seqlens: borders of equal windows -> [tokens, width]."""
    q, k, v = (
        self.qkv(hidden_states)
        .reshape(len(hidden_states), 3, self.num_heads, -1)
        .permute(1, 0, 2, 3)
        .unbind(0)
    )
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    windows = len(cu_seqlens) - 1
    q, k, v = (
        x.reshape(windows, -1, self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v)
    )
    # for small windows the backward pass is faster than PyTorch's fused attention
    mixed = ((q * self.scaling) @ k.mT).softmax(-1) @ v
    return self.proj(mixed.transpose(1, 2).reshape(len(hidden_states), -1))
