"""Selects the visual tokens that the language model reads, with shapes that do not depend on data:
ViCoStream's chunk-intra rule, or TimeChat-Online's differential token drop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from vicort.runtime.core import TokenMode

WITHIN_CHUNK, FROM_FIRST = int(TokenMode.WITHIN_CHUNK), int(TokenMode.FROM_FIRST)
NO_COSINE = 2.0  # score of a position in a single unit: above every cosine


class TokenControlGraph(nn.Module):
    """Keeps the tokens that changed, by one of two rules.

    `TokenMode.WITHIN_CHUNK`: the whole first unit and, of the other units, the positions that
    change within the chunk. The score of a position is the minimum cosine between its tokens in
    successive units. A position is kept in all units if its score is below a threshold or among the
    K lowest (ties: the earlier position).

    `TokenMode.FROM_BEFORE`: of each unit the tokens whose cosine with the token at the same
    position of the unit before is not above the threshold. The unit before the first one is an
    input; with `TokenMode.FROM_FIRST` there is none, and the first unit is kept whole.
    """

    def forward(
        self, features: Tensor, threshold: Tensor, positions: Tensor, before: Tensor, mode: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """features: [U,P,width]; threshold: [1] float32, -2 = no position is below it; positions:
        [1] int32, K; before: [P,width], the unit before the first; mode: [1] int32, a TokenMode.

        Returns kept [U*P] int32: flat indices u*P+p, ascending, then -1; count [1] int32: number of
        kept tokens; compact [U*P,width]: the kept tokens in that order, then zeros; mean [width]
        float32: of the kept tokens, 0 where there are none.
        """
        units, positions_in_unit = features.shape[0], features.shape[1]
        unit = torch.arange(units, device=features.device)
        is_first = (unit == 0)[:, None]
        similarity = successive_cosines(features, before, unit)  # [U,P]
        score = torch.where(is_first, NO_COSINE, similarity).amin(0)
        hot = (score < threshold) | (rank(score) < positions)
        within_chunk = is_first | hot[None]
        from_before = ~(similarity > threshold) | (is_first & (mode == FROM_FIRST))
        # onnxruntime has no Where for booleans
        is_within = mode == WITHIN_CHUNK
        keep = ((is_within & within_chunk) | (~is_within & from_before)).reshape(-1)

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
        return kept, count, compact, compact.float().sum(0) / count.clamp(min=1)


def successive_cosines(features: Tensor, before: Tensor, unit: Tensor) -> Tensor:
    """Cosine of each token with the token at the same position of the unit before: [U,P,width] and
    [P,width], of the unit before the first -> [U,P] float32."""
    exact = features.float()
    shifted = exact.index_select(0, (unit - 1).clamp(min=0))
    preceding = torch.where((unit > 0)[:, None, None], shifted, before.float()[None])
    return cosine_similarity(preceding, exact, dim=-1)


def rank(score: Tensor) -> Tensor:
    """Number of scores that are lower, or equal and earlier: [P] -> [P] int64, without a sort."""
    place = torch.arange(score.shape[0], device=score.device)
    lower = score[None] < score[:, None]
    tied = (score[None] == score[:, None]) & (place[None] < place[:, None])
    return (lower | tied).sum(1)
