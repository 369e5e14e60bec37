"""Opens the long-term memory that a policy describes."""

from __future__ import annotations

from numpy.typing import DTypeLike

from vicort.runtime.devices.device import Device
from vicort.runtime.devices.stage_clock import StageClock
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.long_term.frame_recall import FrameRecallMemory, frame_recall_size
from vicort.runtime.memory.long_term.key_clusters import KeyClusterMemory, key_clusters_size
from vicort.runtime.memory.long_term.page_recall import open_page_recall, page_recall_size
from vicort.runtime.memory.long_term.protocols import LongTerm, LongTermSize
from vicort.runtime.memory.long_term.sink_buckets import SinkBucketsMemory, sink_buckets_size
from vicort.runtime.policies.long_term import (
    FrameRecall,
    KeyClusters,
    LongTermPolicy,
    PageRecall,
    SinkBuckets,
)


def long_term_size(
    policy: LongTermPolicy, model: ModelSpec, host_mb: float, dtype: DTypeLike
) -> LongTermSize:
    """What `open_long_term` would open. Raises MemoryBudgetError as it does."""
    match policy:
        case SinkBuckets():
            return sink_buckets_size(model, policy, host_mb, dtype)
        case KeyClusters():
            return key_clusters_size(model, host_mb, dtype, policy)
        case PageRecall():
            return page_recall_size(model, host_mb, dtype, policy)
        case FrameRecall():
            return frame_recall_size(model, policy, host_mb, dtype)
    raise TypeError(f"no long-term memory for policy {policy.policy!r}")


def open_long_term(
    policy: LongTermPolicy,
    device: Device,
    model: ModelSpec,
    host_mb: float,
    dtype: DTypeLike,
    clock: StageClock,
) -> LongTerm:
    """Opens the memory of a policy, within `host_mb` MB of 1e6 bytes.

    clock: records the work that the memory does on its own streams. Raises MemoryBudgetError, with
    the smallest budget that works, if `host_mb` is too little.
    """
    match policy:
        case SinkBuckets():
            return SinkBucketsMemory(model, policy, host_mb, dtype)
        case KeyClusters():
            return KeyClusterMemory(model, host_mb, dtype, policy)
        case PageRecall():
            return open_page_recall(device, model, host_mb, dtype, clock, policy)
        case FrameRecall():
            return FrameRecallMemory(model, policy, host_mb, dtype)
    raise TypeError(f"no long-term memory for policy {policy.policy!r}")
