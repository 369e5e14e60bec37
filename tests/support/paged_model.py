"""The language model with its pages, run in the plainest way: every page stays, every run sees all
of them."""

from __future__ import annotations

import torch
from support.reference_model import Conversation
from torch import Tensor

from vicort.export.qwen2_5_vl.configuration import LanguageConfiguration
from vicort.export.qwen2_5_vl.language import LanguageModel, OutputHead
from vicort.export.qwen2_5_vl.vision import VisionEncoder


class PagedModel:
    """A pool of which nothing is in order: slots are handed out at random, and what was never
    written holds NaN."""

    def __init__(
        self,
        model: LanguageModel,
        config: LanguageConfiguration,
        slots: int,
        page_tokens: int,
        dtype: torch.dtype = torch.float32,
    ):
        self.model = model
        self.config = config
        self.page_tokens = page_tokens
        self.free = torch.randperm(slots, generator=torch.Generator().manual_seed(0)).tolist()
        self.pool = torch.full(
            (slots, config.layers, config.kv_heads, 2, page_tokens, config.head_dim),
            torch.nan,
            dtype=dtype,
        )
        self.where = torch.full((slots, 1, 1, page_tokens, 3), -1, dtype=torch.int32)
        self.used: list[int] = []

    def run(self, tokens: Tensor, features: Tensor, pos: Tensor, padding: int = 0) -> Tensor:
        """tokens [C], -1 = the row is of `features` [C,width], pos [C,3] through the model and into
        new pages -> logits [V].

        padding: empty rows to add, which hold NaN.
        """
        rows = len(pos)
        text = self.model.embed_tokens(tokens.clamp(min=0))
        features = torch.where((tokens >= 0)[:, None], text, features)
        features = torch.cat([features, torch.full((padding, self.config.width), torch.nan)]).to(
            self.pool.dtype
        )
        pos = torch.cat([pos, torch.full((padding, 3), -1)]).int()
        table = torch.tensor([[[[*self.used, -1]]]], dtype=torch.int32)
        segment = torch.zeros(len(pos), dtype=torch.int32)
        until, ends = torch.full_like(segment, len(pos)), torch.tensor([rows - 1])
        new = (features, pos, segment, until, ends.int())
        with torch.no_grad():
            hidden, k, v, *_ = self.model(*new, self.pool, self.where, table)
            logits = OutputHead(self.model)(hidden)[0]
        for start in range(0, rows, self.page_tokens):
            self._place(k[:, start:rows], v[:, start:rows], pos[start:rows])
        return logits

    def _place(self, k: Tensor, v: Tensor, pos: Tensor) -> None:
        """The first page_tokens of k, v [L,C,Hkv,D] and pos [C,3] into a page."""
        slot, count = self.free.pop(), min(self.page_tokens, len(pos))
        self.pool[slot, :, :, 0, :count] = k[:, :count].transpose(1, 2)
        self.pool[slot, :, :, 1, :count] = v[:, :count].transpose(1, 2)
        self.where[slot, 0, 0, :count] = pos[:count]
        self.used.append(slot)


def streamed_answer(
    paged: PagedModel, vision: VisionEncoder, talk: Conversation, chunks: list[int], length: int
) -> tuple[list[int], Tensor]:
    """The conversation as a stream, `chunks` units at a time: greedy tokens, and the logits
    [length,V] that they were chosen from."""
    none = lambda rows: torch.zeros(rows, paged.config.width)
    paged.run(torch.tensor(talk.prompt), none(len(talk.prompt)), talk.prompt_positions())
    unit = 0
    for chunk in chunks:
        with torch.no_grad():
            features = vision(talk.frames[2 * unit : 2 * (unit + chunk)]).flatten(0, 1)
        pos = torch.cat([talk.unit_positions(unit + i) for i in range(chunk)])
        paged.run(torch.full((len(pos),), -1), features, pos, padding=unit % 3)
        unit += chunk
    rows = [
        paged.run(
            torch.tensor(talk.question),
            none(len(talk.question)),
            talk.question_positions(),
            padding=2,
        )
    ]
    while len(rows) < length:
        place = talk.question_positions(len(rows))[-1:]
        rows.append(paged.run(rows[-1].argmax()[None], none(1), place))
    return [int(row.argmax()) for row in rows], torch.stack(rows)
