"""Ours: the time to the first token, and what this request's work costs everybody else.

    cost = wait + prefill + load
         + price · (prefill − least prefill of all)       work that some cached prefix would save
         + decode_price · decoding sequences · prefill    their pause while the prompt is computed

Work that was not necessary delays all that come behind it. How many that will be is told by the
line that it joins, so its price is the candidate's own:

    price = base_price + queue_price · (wait / mean prefill) ^ queue_power

`base_price` is for those that come while it is computed and find their prefixes' worker busy;
it is what is left of the price when queues are empty.
"""

from random import Random

import numpy as np

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class Priced:
    """Greedy for the fleet, not for the request."""

    def __init__(
        self,
        base_price: float = 0.2,
        queue_price: float = 2.0,
        queue_power: float = 1.5,
        decode_price: float = 0.02,
    ) -> None:
        self._base_price = base_price
        self._queue_price = queue_price
        self._queue_power = queue_power
        self._decode_price = decode_price

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        work = candidates.prefill_s + candidates.load_s
        queue = candidates.wait_s / max(candidates.mean_prefill_s, 1e-6)
        price = self._base_price + self._queue_price * queue**self._queue_power
        costs = candidates.wait_s + work
        costs += price * (work - np.minimum.reduce(work))
        costs += self._decode_price * candidates.num_decoding * candidates.prefill_s
        position = int(costs.argmin())
        (near,) = (costs <= costs[position] + 1e-9).nonzero()
        if len(near) > 1:
            position = int(near[candidates.free_fraction[near].argmax()])
        return Choice(position, costs, "the least priced cost")
