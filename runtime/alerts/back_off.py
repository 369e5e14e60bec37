"""How long a target is left alone after failed tries."""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_RETRY_AFTER = 3600.0  # seconds


@dataclass(frozen=True)
class BackOff:
    """Seconds double with each failed try, from `first` to `most`. A random part of up to half of
    them is left out, so that many senders do not come back at one moment."""

    first: float = 1.0
    most: float = 60.0

    def seconds(self, failed: int, retry_after: float = 0.0) -> float:
        """failed: tries in a row, at least 1. retry_after: that the receiver asked for, obeyed up
        to an hour."""
        longest = min(self.most, self.first * 2.0 ** min(failed - 1, 60))
        own = longest * random.uniform(0.5, 1.0)
        return max(own, min(retry_after, MAX_RETRY_AFTER))
