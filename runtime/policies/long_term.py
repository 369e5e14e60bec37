"""What becomes of chunks that leave the recent window, where each layer and head keeps and reads
its own tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vicort.runtime.policies.registry import MOST, Policy, Registry

Digest = Literal["mean-radius", "min-max"]  # how a page's keys are summed up by a box


class LongTermPolicy(Policy):
    """How a system keeps what leaves the recent window; `memory/long_term/opening.py` opens it."""


class SinkBuckets(LongTermPolicy):
    """LiveVLM (arXiv:2505.15269): Vision Sink Bucketing keeps few tokens a layer, and
    position-agnostic retrieval reads part of their pages."""

    policy: ClassVar[str] = "sink-buckets"
    # M, most that a layer keeps, rounded up to whole pages; fewer where memory.host_mb holds fewer
    tokens: int = Field(gt=0, le=MOST)
    keep: float = Field(gt=0, le=1)  # share of a chunk's tokens that enter
    capacity: int = Field(gt=0, le=MOST)  # B, tokens of a bucket
    # r, last rows of a chunk whose queries score its tokens, as far as the engines give them
    observed: int = Field(gt=0, le=MOST)
    # C, tokens that are retrieved together; rounded up to whole cells of the engines
    page: int = Field(gt=0, le=MOST)
    share: float = Field(gt=0, le=1)  # of the pages, retrieved


class PageRecall(LongTermPolicy):
    """FreeKV (arXiv 2505.13109): every page stays on the host, and each KV head reads those that an
    earlier run's queries chose, recalled behind the runs between; heads whose queries have turned
    are corrected. Here for chunks too, not only for answers."""

    policy: ClassVar[str] = "page-recall"
    # tokens that a KV head chooses, besides the prompt and the recent window
    budget: int = Field(1024, gt=0, le=MOST)
    digest: Digest = "mean-radius"
    chunks: bool = True  # whether chunks read it, and not questions only
    tau_prefill: float | None = Field(0.8, ge=-1, le=1)  # see `Speculation`
    tau_decode: float | None = Field(0.8, ge=-1, le=1)
    speculative: bool = True  # False: recall is waited for, before each run


class KeyClusters(LongTermPolicy):
    """ReSV (V-Rex, arXiv 2512.12284): clusters of keys by hash bits, chosen by WiCSum; see
    `long_term/key_clusters.py`."""

    policy: ClassVar[str] = "key-clusters"
    hash_bits: int = Field(ge=1, le=4096)  # N_hp, random hyperplanes
    # Th_hd: a key joins a cluster less than so many bits away
    threshold: int = Field(ge=1, le=4096)
    # clusters of a layer and head that still take tokens: those opened last
    recent: int = Field(ge=1, le=MOST)
    # a cluster that holds so many before a unit takes none of it
    most_tokens: int = Field(ge=1, le=MOST)
    share: float = Field(gt=0, le=1)  # Th_r-wics
    # that a layer and head reads at a time, which bounds what the device holds
    most_cells: int = Field(ge=1, le=MOST)
    seed: int = Field(0, ge=0, le=MOST)  # of the hyperplanes


LONG_TERMS: Registry[LongTermPolicy] = Registry("long_term", SinkBuckets, KeyClusters, PageRecall)
