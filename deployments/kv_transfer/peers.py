"""Which prefill replica is asked for a prompt.

Serve says which ones there are, and for some time does not know that one has stopped. So a decode
replica asks those that it has fared well with, first the one that the Master has chosen,
then the one that has least to do for it, and nobody twice for one prompt.
"""

import random
from collections import Counter
from collections.abc import Collection

from deployments.live_replicas import Replicas
from rtp_serve.disaggregation.breaker import Breaker, Circuit
from rtp_serve.disaggregation.choice import ChoiceReason

ANYBODY = ""
"""Whom Serve picks."""


class Peers:
    """For one event loop."""

    def __init__(self, live: Replicas, breaker: Breaker) -> None:
        self._live = live
        self._breaker = breaker
        self._num_tokens: Counter[str] = Counter()

    def obstacle(self, now_s: float) -> ChoiceReason | None:
        """Why there is nobody to ask."""
        names = self._live.names
        if names is None:
            return None
        if not names:
            return ChoiceReason.NO_PREFILL_REPLICA
        is_open = [self._breaker.circuit(name, now_s) is Circuit.OPEN for name in names]
        return ChoiceReason.CIRCUIT_OPEN if all(is_open) else None

    def choose(self, tried: Collection[str], now_s: float, preferred: str = ANYBODY) -> str | None:
        """One that was not tried, `preferred` if it is there; ANYBODY before Serve has told who
        there is, None if there is no other one."""
        names = self._live.names
        if names is None:
            return None if tried else ANYBODY
        left = [name for name in names if name not in tried]
        for name in sorted(
            left,
            key=lambda name: (name != preferred, self._num_tokens[name], random.random()),
        ):
            if self._breaker.may_try(name, now_s):
                return name
        return None

    @property
    def names(self) -> frozenset[str] | None:
        """Of all that there are; None before Serve has told."""
        return self._live.names

    def num_tokens(self, name: str) -> int:
        """Of the prompts that it is asked for now, by this replica."""
        return self._num_tokens[name]

    @property
    def total_tokens(self) -> int:
        """That all of them are asked for."""
        return self._num_tokens.total()

    def begun(self, name: str, num_tokens: int) -> None:
        """It is asked for a prompt of so many tokens."""
        self._num_tokens[name] += num_tokens

    def ended(self, name: str, num_tokens: int) -> None:
        """It computes them no more for this replica."""
        self._num_tokens[name] -= num_tokens
        if not self._num_tokens[name]:
            del self._num_tokens[name]

    def succeeded(self, name: str) -> None:
        self._breaker.succeeded(name)

    def failed(self, name: str, now_s: float) -> None:
        self._breaker.failed(name, now_s)
