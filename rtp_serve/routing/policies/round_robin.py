"""Each worker in its turn, whatever it has and does."""

from random import Random

import numpy as np

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class RoundRobin:
    """Turns go by slots: after the last one chosen comes the next higher."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        slots = candidates.slots
        span = int(slots.max()) + 1
        costs = ((slots - self._last - 1) % max(span, self._last + 1)).astype(np.float64)
        position = int(costs.argmin())
        self._last = int(slots[position])
        return Choice(position, costs, "its turn")
