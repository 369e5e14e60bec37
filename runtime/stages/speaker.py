"""A model that speaks by itself: after each chunk it chooses between silence and words, which
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
    """All methods run in the prefill stream's own work, so that words keep the stream's order."""

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
        """run: the run that prefills chunks; its buffers are free once a chunk is written.

        Raises ConfigError if the policy's silence is no token of the model.
        """
        silence = silence_token(policy, prompt, memory.system.name)
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
        """Speak after a chunk that has just been written, unless the policy says to be silent.

        Tokens that end an answer are no words: one of them is never the first.

        logits: [V], of the chunk's last token; since: perf_counter_ns when the chunk came.
        """
        words = logits.copy()
        words[self._ends] = -np.inf
        first = int(np.argmax(words))
        silence = probability(logits, self._silence)
        if self._policy.is_silent(silence, probability(logits, first)):
            return
        latency_ms = (time.perf_counter_ns() - since) / 1e6
        tokens = self._say(first)
        text = self._prompt.decode(tokens)
        self._on_spoken(Spoken(chunk.end, chunk.end, text, len(tokens), latency_ms, silence))

    def _say(self, token: int) -> list[int]:
        """Generate greedily from the first token on, and append all of it to the stream.

        Returns the tokens without the one that ends them.
        """
        memory = self._memory
        scratch = memory.tiers.scratch_slots.allocate(len(self._layout.tokens))
        try:
            memory.pool.clear(scratch, self._stream)
            table, start = memory.ingest_table(scratch).slots, memory.timeline.next_text
            tokens: list[int] = []
            limit = min(self._policy.longest, self._last - start)
            while token not in self._ends and len(tokens) < limit:
                logits = self._step(token, len(tokens), start, scratch, table)
                tokens.append(token)
                token = int(np.argmax(logits))
            # Words that the limit cut off get an end too.
            end = token if token in self._ends else self._silence
            self._run(end, len(tokens), start, scratch, table)
            self._device.read(self._stream)  # wait: the pages are freed next
            self._append(len(tokens) + 1, start, scratch)
        finally:
            memory.tiers.scratch_slots.free(scratch)
        return tokens

    def _step(
        self, token: int, row: int, start: int, scratch: Sequence[int], table: np.ndarray
    ) -> np.ndarray:
        """As `_run`. Returns the logits [V] after the token."""
        self._run(token, row, start, scratch, table)
        (logits,) = self._device.read(self._stream, self._language.logits(self._stream))
        return logits[0]

    def _run(
        self, token: int, row: int, start: int, scratch: Sequence[int], table: np.ndarray
    ) -> None:
        """Run one token, and write it to its scratch page."""
        positions = text_positions(start + row, 1)
        out = self._language(np.array([token], np.int32), [], positions, table, self._stream)
        slots = np.asarray(scratch)[self._layout.page[row : row + 1]]
        cells = self._layout.cell[row : row + 1]
        self._memory.pool.write(slots, cells, out.k, out.v, positions, self._stream)

    def _append(self, rows: int, start: int, scratch: Sequence[int]) -> None:
        counts = np.bincount(self._layout.page[:rows])
        pages = [Page(-1, "text", int(count)) for count in counts]
        end = start + rows - 1
        self._memory.append_text(pages, scratch[: len(pages)], end, self._stream)


def silence_token(policy: StreamingEos, prompt: Prompt, system: str) -> int:
    """The policy's token of silence. Raises ConfigError if it is no token of the model."""
    silence = prompt.token_id(policy.silence)
    if silence is None:
        raise ConfigError(
            f"system {system}: speaks.silence {policy.silence!r} is no token of this model: choose "
            f"one of {', '.join(prompt.special_tokens())}"
        )
    return silence


def probability(logits: np.ndarray, token: int) -> float:
    """Softmax probability of one token, from logits [V]."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return float(weights[token] / weights.sum())
