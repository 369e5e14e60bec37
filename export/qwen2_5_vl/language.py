"""The language model of Qwen2.5-VL (arXiv:2502.13923): one graph for prefill, questions and decode.

Parameters have their Hugging Face names without the prefix `model.`; `lm_head` is the output head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vicort.export.bounded_attention import bounded_attention
from vicort.export.qwen2_5_vl.configuration import OBSERVED_ROWS, LanguageConfiguration
from vicort.export.qwen2_5_vl.layers import Linear, RMSNorm, SharedInput, SwiGLU


class Cache(NamedTuple):
    """What bounded_attention reads besides the new tokens."""

    segment: Tensor
    until: Tensor
    pool: Tensor
    where: Tensor
    table: Tensor
    scales: Tensor | None


class LanguageModel(nn.Module):
    """Runs new tokens through all layers. Each attends to the pages in the table and to the new
    tokens before it. Its embedding and its output head are no part of the pass."""

    def __init__(self, config: LanguageConfiguration):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.norm = RMSNorm(config.width, config.epsilon)
        self.lm_head = Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        features: Tensor,
        pos: Tensor,
        segment: Tensor,
        until: Tensor,
        ends: Tensor,
        pool: Tensor,
        where: Tensor,
        table: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One run over C new rows.

        features: [C,width] visual tokens and embedded tokens of text, of the model's dtype. pos,
        segment, until, pool, where, table, scales: as bounded_attention takes them; a row whose t
        is -1 is padding and changes no other row. ends: [E] int32, rows whose hidden states leave.

        Returns hidden [E,width], of the model's dtype, of the rows `ends`, for `OutputHead`; k and
        v [L,C,Hkv,D], not rotated, of the model's dtype; q [L,Hq,D] float32, not rotated, the mean
        over the rows that are not padding; queries [L,R,Hq,D] float32, not rotated, of the last
        R = OBSERVED_ROWS rows that are not padding, oldest first, after zeros if there are fewer.
        """
        real = pos[:, 0] >= 0
        observed = last_rows(real, OBSERVED_ROWS)
        x = torch.where(real[:, None], features, 0)
        keys, values, means, queries = [], [], [], []
        cache = Cache(segment, until, pool, where, table, scales)
        for layer in self.layers:
            x, k, v, q = layer(x, pos, cache)
            keys.append(k)
            values.append(v)
            means.append(mean_row(q, real))
            queries.append(pick_rows(q, observed))
        return (
            self.norm(x.index_select(0, ends)),
            torch.stack(keys),
            torch.stack(values),
            torch.stack(means),
            torch.stack(queries),
        )


class OutputHead(nn.Module):
    """From rows of a run to the chances of the token after each. It is a graph of its own: most
    runs need no logits."""

    def __init__(self, language: LanguageModel):
        super().__init__()
        self.lm_head = language.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [E,width] of the model's dtype -> logits [E,V] float32."""
        return self.lm_head(hidden).float()


class Layer(nn.Module):
    def __init__(self, config: LanguageConfiguration, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.epsilon)
        self.self_attn = LanguageAttention(config, index)
        self.post_attention_layernorm = RMSNorm(config.width, config.epsilon)
        self.mlp = SwiGLU(config.width, config.intermediate, bias=False)

    def forward(
        self, x: Tensor, pos: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mixed, k, v, q = self.self_attn(self.input_layernorm(x), pos, cache)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), k, v, q


class LanguageAttention(SharedInput):
    """Grouped-query attention (arXiv:2305.13245) with biases on q, k and v, over a bounded table of
    pages."""

    parts = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: LanguageConfiguration, index: int):
        super().__init__()
        self.config = config
        self.index = index
        self.q_proj = Linear(config.width, config.query_heads * config.head_dim)
        self.k_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.query_heads * config.head_dim, config.width, bias=False)

    def forward(
        self, x: Tensor, pos: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: [C,width] -> output [C,width], k and v [C,Hkv,D] and q [C,Hq,D], not rotated."""
        config = self.config
        q, k, v = (each.unflatten(-1, (-1, config.head_dim)) for each in self.project(x))
        scale = config.head_dim**-0.5
        sections = list(config.sections)
        mixed = bounded_attention(q, k, v, pos, *cache, self.index, scale, sections, config.theta)
        return self.o_proj(mixed.flatten(1)), k, v, q


def mean_row(x: Tensor, real: Tensor) -> Tensor:
    """Mean of the rows that are not padding: x [C,…], real [C] bool -> […] float32."""
    weight = real.float() / real.float().sum().clamp(min=1)
    return (x.float() * weight[:, None, None]).sum(0)


def last_rows(real: Tensor, count: int) -> Tensor:
    """Indices of the last `count` rows that are not padding: real [C] bool -> [count] int64,
    ascending, after -1 if there are fewer."""
    row = torch.arange(real.shape[0], device=real.device)
    ends = real.to(torch.int32).cumsum(0, dtype=torch.int32)
    later = ends[-1:] - ends  # later rows that are not padding
    target = torch.where(real & (later < count), count - 1 - later, count)
    # the last element receives the rows that are left out
    none = torch.full((count + 1,), -1, device=real.device)
    return none.scatter(0, target.long(), row)[:-1]


def pick_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [C,Hq,D], rows [R] int64 -> [R,Hq,D] float32; zeros where `rows` is negative."""
    return torch.where((rows >= 0)[:, None, None], x.index_select(0, rows.clamp(min=0)).float(), 0)
