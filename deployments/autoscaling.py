"""The planner of `rtp_serve.autoscaling` as Serve's autoscaling policy, in Serve's controller.

    EngineReplica.record_autoscaling_stats ──push──► controller ──► policy ──► number of replicas
                                                                      │ changes, present numbers
                                                                      ▼
                                                        autoscaling_record ◄── GET /autoscaling

`DeploymentPolicy` comes with each deployment that has `replica.autoscaling`, and plans it alone.
`ApplicationPolicy` takes its place where the YAML names it for the application, and sees all roles:

    autoscaling_policy: {policy_function: "deployments.autoscaling:ApplicationPolicy"}

Serve applies its delays and factors around a policy; they are set so that they change nothing, as
the planner has its own.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

from deployments.autoscaling_record import AutoscalingRecord
from rtp_serve.autoscaling.fleet import FleetPlanner
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.types import FleetPlan, Observation
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA
from rtp_serve.routing.types import Role

logger = logging.getLogger("ray.serve")  # the controller's log file is Serve's

_ROLES = {PREFILL_REPLICA: Role.PREFILL, DECODE_REPLICA: Role.DECODE}
_SETTINGS = "autoscaling"
"""Name of a policy's argument that has a deployment's AutoscalingConfig."""

_PERIOD_S = 0.25
"""Serve asks ten times a second, and knows nothing new."""


class _Planned:
    """Deployments of one application that are planned together."""

    def __init__(self) -> None:
        self._planner = FleetPlanner({})
        self._roles: frozenset[Role] = frozenset()
        self._record: AutoscalingRecord | None = None
        self._planned_s = float("-inf")

    def targets(self, contexts: Mapping[Any, AutoscalingContext]) -> dict[Any, int]:
        """By the keys of `contexts`; too soon after the last time nothing changes."""
        first = next(iter(contexts.values()))
        now = first.current_time
        if now - self._planned_s < _PERIOD_S:
            return {key: context.target_num_replicas for key, context in contexts.items()}
        self._planned_s = now
        roles = {key: role_of(context.deployment_name) for key, context in contexts.items()}
        if frozenset(roles.values()) != self._roles:  # deployments come one after the other
            self._roles = frozenset(roles.values())
            self._planner = FleetPlanner(
                {roles[key]: _config(context) for key, context in contexts.items()}
            )
            self._record = self._record or AutoscalingRecord(first.app_name)
        seen = [observation(context, roles[key]) for key, context in contexts.items()]
        plan = self._planner.plan(seen, now)
        self._tell(first.app_name, plan, now)
        by_role = {each.role: each.num_replicas for each in plan.decisions}
        return {key: by_role[role] for key, role in roles.items()}

    def _tell(self, application: str, plan: FleetPlan, now: float) -> None:
        for each in plan.decisions:
            if each.is_change:
                logger.info(
                    "%s, %s replicas: %d → %d; %s",
                    application,
                    each.role.value,
                    each.num_before,
                    each.num_replicas,
                    each.reason,
                )
        assert self._record is not None
        self._record.add(plan, now)


class DeploymentPolicy:
    """One deployment by itself; Serve makes it with `policy_kwargs`."""

    def __init__(self, autoscaling: Mapping[str, Any]) -> None:
        self._planned = _Planned()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        return self._planned.targets({0: context})[0], {}


class ApplicationPolicy:
    """All deployments of an application that have `replica.autoscaling`, and no others."""

    def __init__(self) -> None:
        self._planned = _Planned()

    def __call__(
        self, contexts: Mapping[Any, AutoscalingContext]
    ) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        ours = {key: each for key, each in contexts.items() if _SETTINGS in _kwargs(each)}
        return (self._planned.targets(ours) if ours else {}), {}


def autoscaling_options(config: AutoscalingConfig) -> dict[str, Any]:
    """Serve's `autoscaling_config` of a deployment."""
    options: dict[str, Any] = {
        "min_replicas": config.min_replicas,
        "initial_replicas": config.initial_replicas,
        "max_replicas": config.max_replicas,
        "look_back_period_s": config.look_back_period_s,
    }
    if config.policy == "ongoing-requests":
        return options | {
            "target_ongoing_requests": config.target_ongoing_requests,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
            "downscale_to_zero_delay_s": config.downscale_to_zero_delay_s,
        }
    return options | {
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {
            "policy_function": f"{DeploymentPolicy.__module__}:{DeploymentPolicy.__qualname__}",
            "policy_kwargs": {_SETTINGS: config.model_dump(mode="json")},
        },
    }


def role_of(deployment: str) -> Role:
    return _ROLES.get(deployment, Role.MIXED)


def observation(context: AutoscalingContext, role: Role) -> Observation:
    """What Serve knows of a deployment: the latest figures, not their mean over the look-back."""
    latest: dict[str, dict[str, float]] = {}
    for name, by_replica in (context.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if series:
                latest.setdefault(replica.unique_id, {})[name] = series[-1].value
    loads = {}
    for replica_name, values in latest.items():
        try:
            loads[replica_name] = ReplicaLoad.from_floats(values)
        except KeyError:  # it has not recorded yet
            continue
    unrouted = 0.0 if context.current_num_replicas else context.total_num_requests
    return Observation(
        role, loads, context.current_num_replicas, context.target_num_replicas, unrouted
    )


def _config(context: AutoscalingContext) -> AutoscalingConfig:
    return AutoscalingConfig.model_validate(_kwargs(context)[_SETTINGS])


def _kwargs(context: AutoscalingContext) -> dict[str, Any]:
    """What the deployment's own policy is made with."""
    assert context.config is not None, context.deployment_name
    return context.config.policy.policy_kwargs
