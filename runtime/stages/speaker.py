"""A model that speaks by itself: behind each chunk it decides between silence and words, which
become part of the stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from vicort.runtime.core import Chunk, Page, Spoken
from vicort.runtime.devices.device import Device, Stream
from vicort.runtime.errors import ConfigError
from vicort.runtime.language.language_run import LanguageRun
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.manifest import ModelSpec
from vicort.runtime.memory.layout import Layout
from vicort.runtime.memory.memory import Memory
from vicort.runtime.memory.timeline import text_positions
from vicort.runtime.policies.speech import StreamingEos


class Speaker:
    """All methods are for the prefill stream's own work: what is said has its place in the order of
    the stream."""

    def __init__(
        self,
        policy: StreamingEos,
        device: Device,
        stream: Stream,
        run: LanguageRun,
        memory: Memory,
        model: ModelSpec,
        prompt: Prompt,
        on_spoken: Callable[[Spoken], None],
    ) -> None:
        """run: that of the chunks, whose buffers are free once a chunk is placed. Raises
        ConfigError if the model has no such silence."""
        silence = prompt.token_id(policy.silence)
        if silence is None:
            raise ConfigError(
                f"system {memory.system.name}: speaks.silence {policy.silence!r} is no token of "
                "this model: "
                f"choose one of {', '.join(prompt.special_tokens())}"
            )
        self._policy, self._silence = policy, silence
        self._ends = sorted({silence, *model.eos_tokens})
        self._device = device
        self._stream = stream
        self._language = run
        self._memory = memory
        self._prompt = prompt
        self._on_spoken = on_spoken
        self._last = model.max_position - 1
        self._layout = Layout.of([policy.longest + 1], model.page_tokens)

    def decide(self, chunk: Chunk, logits: np.ndarray, since: int) -> None:
        """Say what there is to say behind a chunk that was just placed.

        logits: [V], of its last token; since: perf_counter_ns when it came.
        """
        quiet = probability(logits, self._silence)
        if quiet >= self._policy.threshold:
            return
        words = logits.copy()
        words[self._ends] = -np.inf
        first = int(np.argmax(words))
        latency = time.perf_counter_ns() - since
        tokens = self._say(first)
        self._on_spoken(
            Spoken(
                chunk.end, chunk.end, self._prompt.decode(tokens), len(tokens), latency / 1e6, quiet
            )
        )

    def _say(self, token: int) -> list[int]:
        """Greedy words from the first one on, without their end; they and it join the stream."""
        memory = self._memory
        scratch = memory.tiers.scratch_slots.allocate(len(self._layout.tokens))
        try:
            memory.pool.clear(scratch, self._stream)
            table, start = memory.ingest_table(scratch).slots, memory.timeline.next_text
            tokens: list[int] = []
            while token not in self._ends and len(tokens) < min(
                self._policy.longest, self._last - start
            ):
                logits = self._step(token, len(tokens), start, scratch, table)
                tokens.append(token)
                token = int(np.argmax(logits))
            # words that were cut off end all the same
            end = token if token in self._ends else self._silence
            self._step(end, len(tokens), start, scratch, table)
            self._append(len(tokens) + 1, start, scratch)
        finally:
            memory.tiers.scratch_slots.free(scratch)
        return tokens

    def _step(
        self, token: int, row: int, start: int, scratch: Sequence[int], table: np.ndarray
    ) -> np.ndarray:
        """One token into its scratch page; returns the logits [V] behind it."""
        positions = text_positions(start + row, 1)
        out = self._language(np.array([token], np.int32), [], positions, table, self._stream)
        slots, cells = (
            np.asarray(scratch)[self._layout.page[row : row + 1]],
            self._layout.cell[row : row + 1],
        )
        self._memory.pool.write(slots, cells, out.k, out.v, positions, self._stream)
        (logits,) = self._device.read(self._stream, out.logits)
        return logits[0]

    def _append(self, rows: int, start: int, scratch: Sequence[int]) -> None:
        counts = np.bincount(self._layout.page[:rows])
        pages = [Page(-1, "text", int(count)) for count in counts]
        end = start + rows - 1
        self._memory.append_text(pages, scratch[: len(pages)], end, self._stream)


def probability(logits: np.ndarray, token: int) -> float:
    """Of one token, from logits [V]."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return float(weights[token] / weights.sum())
