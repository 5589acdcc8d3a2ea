"""The RTP-LLM paper's score: α · local / L + β · remote / L − γ · latency / longest latency.

The second term is the same for all candidates, so it changes no choice; it stays for the record.
"""

from random import Random

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class WeightedScore:
    """The paper gives no weights. Costs are scores with the sign changed."""

    def __init__(self, alpha: float = 1.0, beta: float = 0.5, gamma: float = 1.0) -> None:
        self._alpha, self._beta, self._gamma = alpha, beta, gamma

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        num_tokens = candidates.num_tokens
        latency = candidates.ttft_s
        costs = (
            self._gamma * latency / max(float(latency.max()), 1e-9)
            - self._alpha * candidates.num_cached_tokens / num_tokens
            - self._beta * candidates.num_remote_tokens / num_tokens
        )
        return Choice(int(costs.argmin()), costs, "the best weighted score")
