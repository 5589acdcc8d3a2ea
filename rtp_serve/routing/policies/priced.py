"""Ours: the time to the first token, and what this request's work costs everybody else.

    cost = wait + prefill + load
         + price · (prefill − least prefill of all)       work that some cached prefix would save
         + decode_price · decoding sequences · prefill    their pause while the prompt is computed

Work that was not necessary delays all that come behind it. How many that will be is told by lines,
counted in mean prefills: by the one that it joins, and by the shortest of all, since those that
come can go there instead:

    price = fleet_price · (least wait / mean prefill)
          + queue_price · (wait / mean prefill) ^ queue_power

As long as a worker has nothing to do, a miss there delays nobody and costs its own time alone.

Of equals it takes the one with the most free blocks, and of those the one that was given the fewest
tokens to compute: a cache that is written to less forgets later.
"""

from random import Random

import numpy as np

from rtp_serve.routing.types import Candidates, Choice, Ints, RequestFeatures


class Priced:
    """Greedy for the fleet, not for the request."""

    def __init__(
        self,
        fleet_price: float = 1.0,
        queue_price: float = 1.0,
        queue_power: float = 2.0,
        decode_price: float = 0.02,
    ) -> None:
        self._fleet_price = fleet_price
        self._queue_price = queue_price
        self._queue_power = queue_power
        self._decode_price = decode_price
        self._given: dict[int, int] = {}  # tokens to compute, by slot

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        work = candidates.prefill_s + candidates.load_s
        queue = candidates.wait_s / max(candidates.mean_prefill_s, 1e-6)
        least = float(np.minimum.reduce(queue))
        price = self._fleet_price * least + self._queue_price * queue**self._queue_power
        costs = candidates.wait_s + work
        costs += price * (work - np.minimum.reduce(work))
        costs += self._decode_price * candidates.num_decoding * candidates.prefill_s
        position = int(costs.argmin())
        (near,) = (costs <= costs[position] + 1e-9).nonzero()
        if len(near) > 1:
            position = self._of_equals(near, candidates)
        slot = int(candidates.slots[position])
        num_new = candidates.num_tokens - int(candidates.num_cached_tokens[position])
        self._given[slot] = self._given.get(slot, 0) + num_new
        return Choice(position, costs, "the least priced cost")

    def _of_equals(self, positions: Ints, candidates: Candidates) -> int:
        """The one with the most free blocks; of those, whose cache was written to the least."""
        free = candidates.free_fraction[positions]
        emptiest = positions[free == free.max()].tolist()
        slots = candidates.slots
        return int(min(emptiest, key=lambda each: self._given.get(int(slots[each]), 0)))
