"""Ours: the time to the first token, and what this request's work costs everybody else.

    cost = wait + prefill + load
         + price · (prefill − least prefill of all)       work that some cached prefix would save
         + decode_price · decoding sequences · prefill    their pause while the prompt is computed

Work that was not necessary delays all that come behind it, so its price grows with what stands in
line: `base_price + queue_price · mean wait / mean prefill`.
"""

from random import Random

import numpy as np

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class Priced:
    """Greedy for the fleet, not for the request."""

    def __init__(
        self, base_price: float = 0.1, queue_price: float = 1.0, decode_price: float = 0.02
    ) -> None:
        self._base_price = base_price
        self._queue_price = queue_price
        self._decode_price = decode_price

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        work = candidates.prefill_s + candidates.load_s
        ttft = candidates.wait_s + work
        queue = (
            float(candidates.wait_s.sum()) / len(candidates) / max(candidates.mean_prefill_s, 1e-6)
        )
        price = self._base_price + self._queue_price * queue
        costs = ttft + price * (work - work.min())
        costs += self._decode_price * candidates.num_decoding * candidates.prefill_s
        position = int(costs.argmin())
        near = np.flatnonzero(costs <= costs[position] + 1e-9)
        if len(near) > 1:
            position = int(near[candidates.free_fraction[near].argmax()])
        return Choice(position, costs, "the least priced cost")
