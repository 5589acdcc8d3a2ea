"""Whether a request is taken that would have its first token too late.

It is refused at once, with the time after which it would be taken, rather than kept waiting for an
answer that nobody wants any more. Late means later than its class promises, times a slack: more for
urgent requests, and for tenants that had no more than their share.
"""

from math import inf

from rtp_serve.config.routing import AdmissionConfig, SloClass
from rtp_serve.routing.fairness import FairShare
from rtp_serve.routing.types import RequestFeatures

_LOAD_MEMORY_S = 30.0

_LEAST_DRAIN = 0.05
"""A fleet with too much work drains by what it rejects; nobody is told to wait forever."""


def ttft_target_s(slo: SloClass, num_tokens: int) -> float:
    """Infinite if nothing is promised for such a length."""
    for bucket in slo.ttft:
        if bucket.max_tokens is None or num_tokens <= bucket.max_tokens:
            return bucket.ttft_s
    return inf


class Admission:
    """Measures the work that was taken in, and who asked for it."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._slack = config.fair_slack
        self._shares = FairShare(config.fairness_half_life_s, config.weights)
        self._work_s = 0.0  # of the last _LOAD_MEMORY_S, fading
        self._measured_s = 0.0

    def limit_s(self, request: RequestFeatures, slo: SloClass, now: float) -> float:
        """The latest predicted TTFT with which it is taken."""
        target = ttft_target_s(slo, request.num_tokens)
        if target == inf:
            return inf
        urgency = min(max(request.priority / 50, 0.5), 2.0)
        slack = 1.0 if self._shares.is_over(request.tenant, now) else self._slack
        return target * urgency * slack

    def admitted(self, request: RequestFeatures, num_new: int, work_s: float, now: float) -> None:
        """It is taken, to compute `num_new` tokens in `work_s`."""
        self._fade(now)
        self._work_s += work_s
        self._shares.charge(request.tenant, num_new, now)

    def retry_after_s(self, excess_s: float, num_workers: int, now: float) -> float:
        """When queues will be `excess_s` shorter, if work comes as it did: a worker does a second
        of work a second, and as much comes in as did lately."""
        self._fade(now)
        load = self._work_s / (_LOAD_MEMORY_S * max(num_workers, 1))
        return excess_s / max(1.0 - load, _LEAST_DRAIN)

    def _fade(self, now: float) -> None:
        # A sum that fades by 1/e in _LOAD_MEMORY_S holds the work of as long, if it comes evenly.
        elapsed = now - self._measured_s
        if elapsed > 0:
            self._work_s *= 2.718281828 ** (-elapsed / _LOAD_MEMORY_S)
            self._measured_s = now
