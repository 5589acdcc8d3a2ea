"""The planner of `rtp_serve.autoscaling` as a simulated fleet's scaler."""

from rtp_serve.autoscaling.planner import RolePlanner
from rtp_serve.autoscaling.types import Observation, ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.routing.types import Role
from rtp_serve.simulation.scaled_fleet import FleetView


class PlannedReplicas:
    """Of an aggregated fleet."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._planner = RolePlanner(config)
        self.changes: list[tuple[float, ScalingDecision]] = []
        """With their times."""

    def target(self, view: FleetView, now: float) -> int:
        seen = Observation(
            Role.MIXED, view.loads, view.num_running, view.num_target, view.num_unrouted
        )
        decision = self._planner.plan(seen, now)
        if decision.is_change:
            self.changes.append((now, decision))
        return decision.num_replicas
