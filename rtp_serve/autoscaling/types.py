"""What goes into a plan and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.routing.types import Role


@dataclass(frozen=True, slots=True)
class Observation:
    """One role's replicas at a time."""

    role: Role

    loads: Mapping[str, ReplicaLoad]
    """By replica, of those that run and have reported."""

    num_running: int
    """Replicas that take requests."""

    num_target: int
    """With those that start, without those that go."""

    num_unrouted: float = 0.0
    """Requests that no replica has."""


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How many replicas of a role there shall be, and why."""

    role: Role
    num_replicas: int
    num_before: int
    reason: str
    num_needed: int = 0
    """The most that was needed in the down-scale delay."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Of the formula behind it."""

    @property
    def is_change(self) -> bool:
        return self.num_replicas != self.num_before


@dataclass(frozen=True, slots=True)
class RoleSwitch:
    """Advice: let replicas of one role become another's before new ones start."""

    source: Role
    target: Role
    num_replicas: int
    reason: str


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Of all roles of an application."""

    decisions: tuple[ScalingDecision, ...]
    switches: tuple[RoleSwitch, ...] = ()
