"""The longest cached prefix, unless queues differ too much: what Ray's prefix-aware router and
SGLang's do, with an exact index in place of their record of what was sent."""

from random import Random

import numpy as np

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class PrefixAffinity:
    """Queues are counted in requests."""

    def __init__(
        self,
        imbalance_requests: float = 32.0,
        imbalance_ratio: float = 1.1,
        match_ratio: float = 0.1,
    ) -> None:
        """Queues are out of balance when the longest is longer than the shortest by more than
        `imbalance_requests` and more than `imbalance_ratio` times. A prefix counts from
        `match_ratio` of the prompt."""
        self._imbalance_requests = imbalance_requests
        self._imbalance_ratio = imbalance_ratio
        self._match_ratio = match_ratio

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        load = (candidates.num_in_flight + candidates.num_decoding).astype(np.float64)
        longest, shortest = float(load.max()), float(load.min())
        cached = candidates.num_cached_tokens
        best = int(cached.max())
        is_balanced = (
            longest - shortest <= self._imbalance_requests
            or longest <= self._imbalance_ratio * shortest
        )
        if is_balanced and best >= max(1.0, self._match_ratio * candidates.num_tokens):
            costs = np.where(cached == best, load, np.inf)
            return Choice(int(costs.argmin()), costs, "the longest cached prefix")
        return Choice(int(load.argmin()), load, "the shortest queue")
