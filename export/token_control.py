"""Selects the visual tokens that the language model reads: ViCoStream's chunk-intra rule, with
shapes that do not depend on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

NO_COSINE = 2.0  # score of a position in a single unit: above every cosine


class TokenControlGraph(nn.Module):
    """Keeps the whole first unit and, of the other units, the positions that change within the
    chunk.

    The score of a position is the minimum cosine between its tokens in successive units. A position
    is kept in all units if its score is below a threshold or among the K lowest (ties: the earlier
    position).
    """

    def forward(
        self, features: Tensor, threshold: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """features: [U,P,width]; threshold: [1] float32, -2 = no position is below it; positions:
        [1] int32, K.

        Returns kept [U*P] int32: flat indices u*P+p, ascending, then -1; count [1] int32: number of
        kept tokens; compact [U*P,width]: the kept tokens in that order, then zeros; mean [width]
        float32: of the kept tokens.
        """
        units, positions_in_unit = features.shape[0], features.shape[1]
        unit = torch.arange(units, device=features.device)
        score = least_cosine(features, unit)
        hot = (score < threshold) | (rank(score) < positions)
        keep = ((unit == 0)[:, None] | hot[None]).reshape(-1)  # [U*P]

        index = torch.arange(units * positions_in_unit, dtype=torch.int32, device=features.device)
        ends = keep.to(torch.int32).cumsum(0, dtype=torch.int32)
        # the last element receives the dropped tokens
        beyond = torch.full(
            (units * positions_in_unit + 1,), -1, dtype=torch.int32, device=features.device
        )
        target = torch.where(keep, ends - 1, units * positions_in_unit)
        kept = beyond.scatter(0, target.long(), index)[:-1]

        filled = (kept >= 0)[:, None]
        compact = torch.where(filled, features.flatten(0, 1).index_select(0, kept.clamp(min=0)), 0)
        count = ends[-1:]
        return kept, count, compact, compact.float().sum(0) / count


def least_cosine(features: Tensor, unit: Tensor) -> Tensor:
    """Minimum cosine between the tokens of successive units per position: [U,P,width] -> [P]
    float32. NO_COSINE if there is only one unit."""
    exact = features.float()
    before = exact.index_select(0, (unit - 1).clamp(min=0))
    similarity = cosine_similarity(before, exact, dim=-1)  # [U,P]
    return torch.where((unit > 0)[:, None], similarity, NO_COSINE).amin(0)


def rank(score: Tensor) -> Tensor:
    """Number of scores that are lower, or equal and earlier: [P] -> [P] int64, without a sort."""
    place = torch.arange(score.shape[0], device=score.device)
    lower = score[None] < score[:, None]
    tied = (score[None] == score[:, None]) & (place[None] < place[:, None])
    return (lower | tied).sum(1)
