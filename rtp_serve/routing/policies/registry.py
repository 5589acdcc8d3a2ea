"""Routing policies by name, each made from its knobs."""

from collections.abc import Callable, Mapping

from rtp_serve.errors import ConfigError
from rtp_serve.registry import Registry
from rtp_serve.routing.policy import RoutingPolicy

_POLICIES = "rtp_serve.routing.policies"

POLICIES = Registry[Callable[..., RoutingPolicy]](
    "routing policy",
    {
        "priced": f"{_POLICIES}.priced:Priced",
        "shortest-ttft": f"{_POLICIES}.shortest_ttft:ShortestTTFT",
        "weighted-score": f"{_POLICIES}.weighted_score:WeightedScore",
        "prefix-affinity": f"{_POLICIES}.prefix_affinity:PrefixAffinity",
        "power-of-two": f"{_POLICIES}.power_of_two:PowerOfTwo",
        "round-robin": f"{_POLICIES}.round_robin:RoundRobin",
    },
)


def make_policy(name: str, knobs: Mapping[str, float] | None = None) -> RoutingPolicy:
    """Raises ConfigError for an unknown name or knob."""
    factory = POLICIES.load(name)
    try:
        return factory(**(knobs or {}))
    except TypeError as error:
        raise ConfigError(f"routing policy {name!r}: {error}") from None
