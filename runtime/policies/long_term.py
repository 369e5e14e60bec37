"""Long-term memory: how chunks that leave the recent window are kept, where each layer and head
keeps and reads its own tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vicort.runtime.policies.policy import MAX_COUNT, Policy

Digest = Literal["mean-radius", "min-max"]  # how a box summarises the keys of a page
# How the query heads of a KV head choose pages together, see `page_scores`: over what the mean or
# the maximum of the group is taken.
GroupScores = Literal[
    "mean-query",
    "max-query",
    "mean-score",
    "max-score",
    "mean-softmax",
    "max-softmax",
    "mean-scaled-softmax",
]
GroupSimilarity = Literal["mean", "max"]  # of the cosines of the query heads of a KV head
# Time positions of recalled units: closed up to the newest unit, or those of the stream
RecalledPositions = Literal["consecutive", "kept"]


class LongTermPolicy(Policy):
    """Settings of a long-term memory, which `memory/long_term/factory.py` opens."""


class SinkBuckets(LongTermPolicy):
    """LiveVLM (arXiv:2505.15269): Vision Sink Bucketing keeps few tokens per layer, and
    position-agnostic retrieval reads part of their pages."""

    policy: Literal["sink-buckets"] = "sink-buckets"
    # M, maximum that a layer keeps, rounded up to whole pages; fewer if memory.host_mb is less
    tokens: int = Field(gt=0, le=MAX_COUNT)
    keep: float = Field(gt=0, le=1)  # share of a chunk's tokens that are kept
    capacity: int = Field(gt=0, le=MAX_COUNT)  # B, tokens per bucket
    # r, the last rows of a chunk whose queries score its tokens; at most the engines' observed_rows
    observed: int = Field(gt=0, le=MAX_COUNT)
    # C, tokens that are retrieved together, rounded up to whole cells of the engines
    page: int = Field(gt=0, le=MAX_COUNT)
    share: float = Field(gt=0, le=1)  # share of the pages that is retrieved


class PageRecall(LongTermPolicy):
    """FreeKV (arXiv 2505.13109): every page stays on the host. Each KV head reads the pages that
    the queries of an earlier run chose, which are recalled in the background. Heads whose queries
    have changed too much are corrected. Here it serves chunks as well as answers."""

    policy: Literal["page-recall"] = "page-recall"
    # tokens that a KV head reads, besides the prompt and the recent window
    budget: int = Field(default=1024, gt=0, le=MAX_COUNT)
    digest: Digest = "mean-radius"
    group_scores: GroupScores = "mean-scaled-softmax"
    chunks: bool = True  # whether chunks read long-term memory, or questions only
    tau_prefill: float | None = Field(default=0.8, ge=-1, le=1)  # see `Speculation`
    tau_decode: float | None = Field(default=0.8, ge=-1, le=1)
    group_similarity: GroupSimilarity = "mean"
    lookahead: Literal[1, 2] = 2  # tokens from the queries that choose to the token that reads


class KeyClusters(LongTermPolicy):
    """ReSV (V-Rex, arXiv 2512.12284): clusters of keys by hash bits, chosen by WiCSum; see
    `memory/long_term/key_clusters.py`."""

    policy: Literal["key-clusters"] = "key-clusters"
    hash_bits: int = Field(ge=1, le=4096)  # N_hp, random hyperplanes
    # Th_hd: a key joins a cluster if fewer bits than this differ
    threshold: int = Field(ge=1, le=4096)
    # latest clusters of a layer and head that still accept tokens
    recent: int = Field(ge=1, le=MAX_COUNT)
    # a cluster with this many tokens accepts none of the next unit
    most_tokens: int = Field(ge=1, le=MAX_COUNT)
    share: float = Field(gt=0, le=1)  # Th_r-wics
    # maximum cells that a layer and head reads per run, which bounds device memory
    most_cells: int = Field(ge=1, le=MAX_COUNT)
    seed: int = Field(default=0, ge=0, le=MAX_COUNT)  # random seed of the hyperplanes


class FrameRecall(LongTermPolicy):
    """ReKV (arXiv 2503.00540): every temporal unit goes to the host as it is written. In each layer
    a question reads the units whose mean key is nearest to the mean query of its words, the same
    for all heads; see `memory/long_term/frame_recall.py`."""

    policy: Literal["frame-recall"] = "frame-recall"
    top: int = Field(default=64, gt=0, le=MAX_COUNT)  # units that a layer reads
    positions: RecalledPositions = "consecutive"
    # False: units of the recent window are recalled like older ones, and not read otherwise
    window: bool = False
    # runs of the question's words that choose, each over what the one before it chose
    passes: int = Field(default=1, gt=0, le=MAX_COUNT)


AnyLongTerm = Annotated[
    SinkBuckets | KeyClusters | PageRecall | FrameRecall, Field(discriminator="policy")
]
