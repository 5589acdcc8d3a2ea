"""Loads for planners under test."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.planner import RolePlanner
from rtp_serve.autoscaling.types import Observation, ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.routing.types import Role

PERIOD_S = 0.5
TOKENS = 1000.0
SERVICE_S = 0.25


def config(**values: Any) -> AutoscalingConfig:
    return AutoscalingConfig.model_validate(
        {
            "max_replicas": 16,
            "tokens_per_s": 4000,
            "targets": {"ttft": [{"ttft_s": 1.0}], "itl_s": 0.1},
        }
        | values
    )


def served(load: ReplicaLoad, count: float, tokens: float, service_s: float) -> ReplicaLoad:
    """With so many more prompts of so many tokens, which came and were computed in time."""
    return replace(
        load,
        num_served=load.num_served + count,
        served_tokens=load.served_tokens + count * tokens,
        service_s=load.service_s + count * service_s,
        service_s_squared=load.service_s_squared + count * service_s**2,
        num_in_time=load.num_in_time + count,
        num_arrivals=(load.num_arrivals[0] + count,),
        arrived_tokens=(load.arrived_tokens[0] + count * tokens,),
    )


class PlayedRole:
    """One role whose orders are filled at once; requests are served as they come."""

    def __init__(
        self, settings: AutoscalingConfig, role: Role = Role.MIXED, first: int = 1
    ) -> None:
        self.planner, self.role = RolePlanner(settings), role
        self.num_replicas = first
        self.now = 0.0
        self._total = ReplicaLoad(num_arrivals=(0.0,), arrived_tokens=(0.0,))

    def play(
        self, rate: float, seconds: float, *, unrouted: float = 0, **present: float
    ) -> Iterator[ScalingDecision]:
        """Even arrivals; `present` are fields of the replicas' load."""
        for _ in range(round(seconds / PERIOD_S)):
            self.now += PERIOD_S
            self._total = served(self._total, rate * PERIOD_S, TOKENS, SERVICE_S)
            loads = {"all": replace(self._total, **present)} if self.num_replicas else {}
            decision = self.planner.plan(
                Observation(self.role, loads, self.num_replicas, self.num_replicas, unrouted),
                self.now,
            )
            self.num_replicas = decision.num_replicas
            yield decision
