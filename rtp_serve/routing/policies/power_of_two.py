"""The shorter queue of two that chance names: what Ray Serve does by default."""

from random import Random

import numpy as np

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class PowerOfTwo:
    """Queues are counted in requests."""

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        load = candidates.num_in_flight + candidates.num_decoding
        pair = rng.sample(range(len(candidates)), k=min(2, len(candidates)))
        costs = np.full(len(candidates), np.inf)
        costs[pair] = load[pair]
        return Choice(int(costs.argmin()), costs, "the shorter of two queues")
