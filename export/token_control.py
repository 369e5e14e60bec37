"""Which visual tokens go on to the language model: ViCoStream's rule within a chunk, with shapes
that never depend on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

NEVER = 2.0  # above any cosine: the score of a position that has nothing to be compared with


class TokenControlGraph(nn.Module):
    """The first unit is kept whole; of the others, the positions whose token changes at least once
    within the chunk.

    A position's score is the least cosine between its tokens in successive units. It is kept, in
    all units, if its score is below a threshold, or among the K lowest (ties: the earlier
    position).
    """

    def forward(
        self, features: Tensor, threshold: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """features: [U,P,width]; threshold: [1] float32, -2 = none passes; positions: [1] int32, K.

        Returns kept [U*P] int32: flat indices u*P+p, rising, then -1; count [1] int32: how many are
        kept; compact [U*P,width]: the kept tokens in that order, then zeros; mean [width] float32:
        of the kept tokens.
        """
        units, places = features.shape[0], features.shape[1]
        unit = torch.arange(units, device=features.device)
        score = least_cosine(features, unit)
        hot = (score < threshold) | (rank(score) < positions)
        keep = ((unit == 0)[:, None] | hot[None]).reshape(-1)  # [U*P]

        index = torch.arange(units * places, dtype=torch.int32, device=features.device)
        ends = keep.to(torch.int32).cumsum(0, dtype=torch.int32)
        # the last one takes what is dropped
        beyond = torch.full((units * places + 1,), -1, dtype=torch.int32, device=features.device)
        target = torch.where(keep, ends - 1, units * places)
        kept = beyond.scatter(0, target.long(), index)[:-1]

        there = (kept >= 0)[:, None]
        compact = torch.where(there, features.flatten(0, 1).index_select(0, kept.clamp(min=0)), 0)
        count = ends[-1:]
        return kept, count, compact, compact.float().sum(0) / count


def least_cosine(features: Tensor, unit: Tensor) -> Tensor:
    """Least cosine between the tokens of successive units, a position: [U,P,width] -> [P] float32.
    NEVER where there is but one unit."""
    exact = features.float()
    before = exact.index_select(0, (unit - 1).clamp(min=0))
    similarity = cosine_similarity(before, exact, dim=-1)  # [U,P]
    return torch.where((unit > 0)[:, None], similarity, NEVER).amin(0)


def rank(score: Tensor) -> Tensor:
    """How many scores are lower, or equal and earlier: [P] -> [P] int64. Exact, and needs no
    sort."""
    place = torch.arange(score.shape[0], device=score.device)
    lower = score[None] < score[:, None]
    tied = (score[None] == score[:, None]) & (place[None] < place[:, None])
    return (lower | tied).sum(1)
