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

from rtp_serve.native.priced import Prices, Workloads, priced
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
        self._prices = Prices(fleet_price, queue_price, decode_price)
        self._queue_power = queue_power
        self._given: dict[int, int] = {}  # tokens to compute, by slot

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        mean_s = max(candidates.mean_prefill_s, 1e-6)
        # numpy's power: that of C may differ in its last bit.
        crowds = (candidates.wait_s / mean_s) ** self._queue_power
        workloads = Workloads(
            candidates.wait_s,
            candidates.prefill_s,
            candidates.load_s,
            candidates.num_decoding,
            crowds,
            candidates.free_fraction,
        )
        costs = np.empty(len(crowds))
        found = priced(costs, workloads, mean_s, self._prices)
        position = found[0] if len(found) == 1 else self._least_given(found, candidates.slots)
        slot = int(candidates.slots[position])
        num_new = candidates.num_tokens - int(candidates.num_cached_tokens[position])
        self._given[slot] = self._given.get(slot, 0) + num_new
        return Choice(position, costs, "the least priced cost")

    def _least_given(self, positions: list[int], slots: Ints) -> int:
        """The one whose cache was written to the least."""
        return min(positions, key=lambda each: self._given.get(int(slots[each]), 0))
