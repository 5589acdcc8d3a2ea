"""The first token soonest, for this request alone."""

from random import Random

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class ShortestTTFT:
    """Spends caches to save queues: a miss makes work that delays whoever comes later."""

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        costs = candidates.ttft_s
        return Choice(int(costs.argmin()), costs, "the shortest predicted TTFT")
