"""What every routing policy is: a choice among candidates, made from their numbers."""

from random import Random
from typing import Protocol

from rtp_serve.routing.types import Candidates, Choice, RequestFeatures


class RoutingPolicy(Protocol):
    """Books nothing: whoever asked does that. Some remember whose turn it is."""

    def choose(self, request: RequestFeatures, candidates: Candidates, rng: Random) -> Choice:
        """One of `candidates`, of which there is at least one."""
        ...
