"""The same streaming job in transformers: the baseline of vicort.

Same weights, chunks, kept-token rule, bounded window, positions and questions; transformers' own
Qwen2.5-VL class runs every layer. The baseline is optimised: the grids of the vision encoder are
computed once, rotated keys stay rotated, no logits are computed while ingesting, and the window is
assembled from the chunks it holds with one concatenation a layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from vicort.benchmarks.common.checkpoints import read_json
from vicort.runtime.core import UNIT_FRAMES, Frame
from vicort.runtime.policies.chunk_index import ChunkEntry, ChunkIndex
from vicort.runtime.policies.drop import Drop
from vicort.runtime.policies.retrieval import Retrieval
from vicort.runtime.policies.system import System


@dataclass(frozen=True)
class Variant:
    """One way of running transformers."""

    # fp32 | bf16 (the whole model) | autocast (fp32 weights, bf16 products)
    precision: str = "fp32"
    threads: int = 1
    attention: str = "sdpa"  # sdpa | eager
    compiled: bool = False  # torch.compile of the vision encoder and the language model
    # not transformers' own: attention of all vision windows at once instead of its loop over them
    batched_windows: bool = False
    device: str = "cpu"  # PyTorch's name of it

    @property
    def name(self) -> str:
        extras = (
            [self.attention] * (self.attention != "sdpa")
            + ["compiled"] * self.compiled
            + ["batched windows"] * self.batched_windows
        )
        runs_on = f"{self.threads}t" if self.device == "cpu" else self.device
        return " ".join([self.precision, runs_on, *extras])


@dataclass
class CachedChunk:
    """The cache of a chunk, or of the prompt: rotated keys and values [1, Hkv, C, D] for each
    layer."""

    keys: list[Tensor]
    values: list[Tensor]
    digest: Tensor | None = None  # [width] mean of its rows as they entered the language model


@dataclass
class TransformersReply:
    """An answer with its logits."""

    tokens: list[int]
    text: str
    ttft_ms: float
    # [V] float32 after each token, the first after the question's last token
    logits: list[np.ndarray] = field(repr=False)


class TransformersStream:
    """A stream watched by transformers; chunks and questions come one after another."""

    def __init__(
        self, checkpoint: Path, system: System, variant: Variant, height: int, width: int
    ) -> None:
        """height, width: pixels of a frame as the model takes it."""
        self.variant = variant
        self.system = system
        self.size = (height, width)
        self.model = load_model(checkpoint, variant)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        preprocessing = read_json(checkpoint / "preprocessor_config.json")
        self.device = torch.device(variant.device)
        self._mean = self._tensor(preprocessing["image_mean"]) * 255
        self._std = self._tensor(preprocessing["image_std"]) * 255
        self._vision = self.model.config.vision_config
        self._visual, self._language = self.model.model.visual, self.model.model.language_model
        if variant.compiled:
            self._visual = torch.compile(self._visual)
            self._language = torch.compile(self._language)
        self._grids: dict[int, dict[str, Tensor]] = {}
        self._origin: Fraction | None = None
        self._newest = 0
        self.kept: list[np.ndarray] = []  # indices of the kept tokens, a chunk
        self.chunks: list[CachedChunk] = []
        self._growing: DynamicCache | None = None  # full history: one cache that grows
        self._prompt = self._read_prompt()

    # ---- a chunk, stage by stage

    def preprocess(self, frames: Sequence[Frame]) -> Tensor:
        """Letterboxed, normalised patches [n, 3 * 2 * p * p] of a chunk: bicubic with antialias, on
        the CPU by PIL, as Hugging Face's processor makes them, elsewhere by PyTorch on the device,
        which takes less time."""
        self._set_threads()
        if self.device.type == "cpu":
            boxed = torch.from_numpy(
                np.stack([letterbox(frame.image, *self.size) for frame in frames])
            ).float()
        else:
            images = torch.from_numpy(np.stack([frame.image for frame in frames])).to(self.device)
            boxed = letterbox_tensor(images, *self.size)
        pixels = (boxed - self._mean) / self._std
        p, m = self._vision.patch_size, self._vision.spatial_merge_size
        rows, columns = self.size[0] // p // m, self.size[1] // p // m
        grid = pixels.reshape(-1, UNIT_FRAMES, rows, m, p, columns, m, p, 3)
        return grid.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * UNIT_FRAMES * p * p)

    @torch.inference_mode()
    def encode(self, patches: Tensor) -> Tensor:
        """Visual tokens [U, P, width] of a chunk's patches."""
        self._set_threads()
        p, m = self._vision.patch_size, self._vision.spatial_merge_size
        unit_patches = self.size[0] // p * (self.size[1] // p)
        units = len(patches) // unit_patches
        grid = self._tensor([[units, self.size[0] // p, self.size[1] // p]])
        if units not in self._grids:
            self._grids[units] = self._precomputed(grid)
        with self._autocast():
            patches = patches.to(self._visual.patch_embed.proj.weight.dtype)
            features = self._visual(patches, grid_thw=grid, **self._grids[units]).pooler_output
        return features.reshape(units, unit_patches // (m * m), -1)

    @torch.inference_mode()
    def choose(self, features: Tensor) -> Tensor:
        """Indices u * P + p of the tokens that are kept."""
        units, tokens, _ = features.shape
        return kept_tokens(features, self.system.drop, units, tokens)

    @torch.inference_mode()
    def ingest(self, features: Tensor, kept: Tensor, times: Sequence[Fraction]) -> None:
        """Prefill the kept tokens over the prompt and the chunks that the system's ingest policy
        shows. times: start of each unit."""
        self._set_threads()
        positions = self._positions(times)[:, kept]
        rows = features.reshape(-1, features.shape[-1])[kept]
        window = self.system.ingest.window
        if window is None:
            cache = self._growing = self._growing or self._assemble(())
        else:
            cache = self._assemble(range(max(len(self.chunks) - window, 0), len(self.chunks)))
        self._forward(rows, positions, cache)
        self._remember(cache, rows)

    def push(self, frames: Sequence[Frame], patches: Tensor | None = None) -> None:
        """A whole chunk; patches: its preprocessed form, where that is not to be timed."""
        patches = self.preprocess(frames) if patches is None else patches
        features = self.encode(patches)
        kept = self.choose(features)
        self.kept.append(kept.numpy(force=True))
        self.ingest(features, kept, [frame.time for frame in frames[::UNIT_FRAMES]])

    # ---- a question

    @torch.inference_mode()
    def ask(self, question: str, max_tokens: int) -> TransformersReply:
        """Greedy answer over the prompt and the chunks that retrieval chooses."""
        self._set_threads()
        start = time.perf_counter()
        cache = self._assemble(self._retrieve(question))
        return self._answer(start, cache, *self._question(question), max_tokens)

    @torch.inference_mode()
    def ask_about(
        self, frames: Sequence[Frame], question: str, max_tokens: int
    ) -> TransformersReply:
        """Greedy answer over the prompt and all of these frames, which it sees now and at once, in
        one pass with the question. The time to the first token includes them."""
        self._set_threads()
        start = time.perf_counter()
        features = self.encode(self.preprocess(frames))
        seen = self._positions([frame.time for frame in frames[::UNIT_FRAMES]])
        rows, positions = self._question(question)
        return self._answer(
            start,
            self._assemble(()),
            torch.cat([features.flatten(0, 1), rows]),
            torch.cat([seen, positions], 1),
            max_tokens,
        )

    def _question(self, question: str) -> tuple[Tensor, Tensor]:
        """rows [C, width] and positions [3, C] of a question's text, after all that was seen."""
        ids = self._suffix(question)
        first = self._newest + 1
        positions = torch.arange(first, first + len(ids), device=self.device).expand(3, -1)
        return self._language.embed_tokens(self._tensor(ids)), positions

    def _answer(
        self, start: float, cache: DynamicCache, rows: Tensor, positions: Tensor, max_tokens: int
    ) -> TransformersReply:
        tokens: list[int] = []
        logits: list[np.ndarray] = []
        ttft = 0.0
        while len(tokens) < max_tokens:
            hidden = self._forward(rows, positions, cache)
            with self._autocast():
                logits.append(self.model.lm_head(hidden[-1]).float().numpy(force=True))
            ttft = ttft or time.perf_counter() - start
            token = int(logits[-1].argmax())
            if token in self._ends():
                break
            tokens.append(token)
            rows = self._language.embed_tokens(self._tensor([token]))
            positions = positions[:, -1:] + 1
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return TransformersReply(tokens, text, ttft * 1e3, logits)

    def _retrieve(self, question: str) -> Sequence[int]:
        """Numbers of the chunks that a question sees."""
        words = self._tensor(self.tokenizer(question, add_special_tokens=False).input_ids)
        digest = self._language.embed_tokens(words).float().mean(0).numpy(force=True)
        retrieval: Retrieval = self.system.retrieval
        held = ChunkIndex(len(digest), unit_pages=1, compares=retrieval.compares)
        for index, chunk in enumerate(self.chunks):
            if chunk.digest is not None:
                held.add(ChunkEntry(index, [index], 1, index), chunk.digest.numpy(force=True))
        return retrieval.choose(digest, held)

    def _suffix(self, question: str) -> list[int]:
        whole = self._render(question).partition(self._video_token)[2]
        return self.tokenizer(whole, add_special_tokens=False).input_ids

    # ---- cache and positions

    @torch.inference_mode()
    def _read_prompt(self) -> CachedChunk:
        self._set_threads()
        ids = self.tokenizer(
            self._render("").partition(self._video_token)[0], add_special_tokens=False
        ).input_ids
        self._prompt_tokens = len(ids)
        cache = DynamicCache()
        if ids:
            positions = torch.arange(len(ids), device=self.device).expand(3, -1)
            self._forward(self._language.embed_tokens(self._tensor(ids)), positions, cache)
        return CachedChunk(
            [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        )

    def _assemble(self, numbers: Sequence[int]) -> DynamicCache:
        """A cache of the prompt and these chunks."""
        parts = [self._prompt, *(self.chunks[number] for number in numbers)]
        cache = DynamicCache()
        for layer in range(self.model.config.text_config.num_hidden_layers):
            cache.update(
                torch.cat([part.keys[layer] for part in parts], 2),
                torch.cat([part.values[layer] for part in parts], 2),
                layer,
            )
        return cache

    def _forward(self, rows: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """rows [C, width], positions [3, C] -> hidden states [C, width]; the cache takes their keys
        and values."""
        with self._autocast():
            output = self._language(
                inputs_embeds=rows[None],
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        return output.last_hidden_state[0]

    def _remember(self, cache: DynamicCache, rows: Tensor) -> None:
        own = slice(cache.get_seq_length() - len(rows), None)
        keys = [layer.keys[:, :, own].clone() for layer in cache.layers]
        values = [layer.values[:, :, own].clone() for layer in cache.layers]
        self.chunks.append(CachedChunk(keys, values, rows.float().mean(0)))

    def _positions(self, times: Sequence[Fraction]) -> Tensor:
        """[3, U * P] positions (t, h, w) of all tokens of a chunk: time from exact timestamps,
        before tokens are dropped."""
        side = self._vision.patch_size * self._vision.spatial_merge_size
        rows, columns = self.size[0] // side, self.size[1] // side
        self._origin = times[0] if self._origin is None else self._origin
        rate = Fraction(self._vision.tokens_per_second)
        t = torch.tensor([math.floor((start - self._origin) * rate) for start in times])
        h, w = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack(
            [
                t[:, None].expand(-1, rows * columns),
                h.reshape(1, -1).expand(len(t), -1),
                w.reshape(1, -1).expand(len(t), -1),
            ]
        )
        positions = grid.reshape(3, -1) + self._prompt_tokens
        self._newest = max(self._newest, int(positions.max()))
        return positions.to(self.device)

    # ---- helpers

    def _precomputed(self, grid: Tensor) -> dict[str, Tensor]:
        """What transformers otherwise computes from the grid in every call (its documented
        option)."""
        config = self._vision
        windows = get_vision_window_index(
            grid, config.spatial_merge_size, config.window_size, config.patch_size
        )
        return {
            "position_ids": get_vision_position_ids(grid, config.spatial_merge_size),
            "cu_seqlens": get_vision_cu_seqlens(grid),
            "window_index": windows[0],
            "cu_window_seqlens": windows[1],
        }

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.device)

    def finish(self) -> None:
        """Waits until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _render(self, question: str) -> str:
        message = {
            "role": "user",
            "content": [{"type": "video"}, {"type": "text", "text": question}],
        }
        return str(
            self.tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
        )

    @property
    def _video_token(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.model.config.video_token_id)

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    def _set_threads(self) -> None:
        if torch.get_num_threads() != self.variant.threads:
            torch.set_num_threads(self.variant.threads)

    def _autocast(self) -> AbstractContextManager:
        return (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.variant.precision == "autocast"
            else nullcontext()
        )


def load_model(checkpoint: Path, variant: Variant) -> Qwen2_5_VLForConditionalGeneration:
    dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint,
        dtype=dtype,
        attn_implementation=variant.attention,
        local_files_only=True,
    ).eval()
    model = model.to(variant.device)  # a no-op on the CPU
    if variant.batched_windows:
        for module in model.modules():
            if isinstance(module, Qwen2_5_VLVisionAttention):
                module.forward = MethodType(_attend_in_batches, module)
    return model


def kept_tokens(features: Tensor, drop: Drop, units: int, tokens: int) -> Tensor:
    """ViCoStream's chunk-intra rule (arXiv 2606.19849) in PyTorch: indices u * P + p that stay,
    ascending.

    features: [U, P, width].
    """
    if units == 1:
        return torch.arange(tokens, device=features.device)
    threshold, positions = drop.rule(units, tokens)
    # [P]
    lowest = torch.nn.functional.cosine_similarity(
        features[:-1].float(), features[1:].float(), dim=-1
    ).amin(0)
    hot = lowest < threshold
    hot[lowest.argsort(stable=True)[:positions]] = True
    stay = torch.cat(
        [torch.ones(1, tokens, dtype=torch.bool, device=features.device), hot.expand(units - 1, -1)]
    )
    return stay.flatten().nonzero().flatten()


def letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w, 3] uint8 -> [height, width, 3] uint8: bicubic with antialias (PIL), black bars,
    centred."""
    if image.shape[:2] == (height, width):
        return image
    scale = min(height / image.shape[0], width / image.shape[1])
    new_height = max(1, round(image.shape[0] * scale))
    new_width = max(1, round(image.shape[1] * scale))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    boxed = np.zeros((height, width, 3), np.uint8)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    boxed[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return boxed


def letterbox_tensor(images: Tensor, height: int, width: int) -> Tensor:
    """[n, h, w, 3] uint8 -> [n, height, width, 3] float32 of whole numbers, 0 to 255: as
    `letterbox`, by PyTorch on the images' device."""
    old_height, old_width = images.shape[1:3]
    scale = min(height / old_height, width / old_width)
    new_height, new_width = max(1, round(old_height * scale)), max(1, round(old_width * scale))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    boxed = torch.zeros(len(images), height, width, 3, device=images.device)
    pixels = images.permute(0, 3, 1, 2).float()
    resized = (
        torch.nn.functional.interpolate(
            pixels, (new_height, new_width), mode="bicubic", antialias=True
        )
        .round_()
        .clamp_(0, 255)
    )
    boxed[:, top : top + new_height, left : left + new_width] = resized.permute(0, 2, 3, 1)
    return boxed


def _attend_in_batches(
    self: Qwen2_5_VLVisionAttention,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: Any,
    **_: Any,
) -> Tensor:
    """The same attention over equal windows at once. hidden_states [tokens, width]; cu_seqlens:
    borders of equal windows."""
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
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
    return self.proj(mixed.transpose(1, 2).reshape(len(hidden_states), -1))
