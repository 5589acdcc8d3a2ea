"""The planner of `rtp_serve.autoscaling` as Serve's autoscaling policy, in Serve's controller.

    a replica's record_autoscaling_stats ──push──► controller ──► policy ──► number of replicas
                                                                   │ changes, present numbers
                                                                   ▼
                                                     autoscaling_record ◄── GET /autoscaling

`DeploymentPolicy` comes with each deployment that has `autoscaling`, and plans it alone.
`ApplicationPolicy` takes its place where the YAML names it for the application, and sees all roles:

    autoscaling_policy: {policy_function: "deployments.autoscaling:ApplicationPolicy"}

Serve applies its delays and factors around a policy; they are set so that they change nothing, as
the planner has its own. Where replicas can change their roles, the record says how many shall, and
they follow it (`deployments/replica_role.py`).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.serve.config import AutoscalingContext

from deployments.autoscaling_record import AutoscalingRecord, read_num_switched, record_of
from deployments.observations import observation, role_of, switched_replicas, utilizations
from deployments.warm_processes import WarmProcesses
from rtp_serve.autoscaling.fleet import FleetPlanner
from rtp_serve.autoscaling.ingress import IngressPlanner
from rtp_serve.autoscaling.lending import Deployed, deployed_for, observed_by_role, still_lent
from rtp_serve.autoscaling.types import FleetPlan
from rtp_serve.config.autoscaling import AutoscalingConfig, IngressAutoscalingConfig, ScalingConfig
from rtp_serve.routing.types import Role

logger = logging.getLogger("ray.serve")  # the controller's log file is Serve's

_SETTINGS, _SWITCHING = "autoscaling", "switching"
"""Names of a policy's arguments: a deployment's AutoscalingConfig, and whether its replicas can
change their roles."""

_PERIOD_S = 0.25
"""Serve asks ten times a second, and knows nothing new."""


Contexts = Mapping[Any, AutoscalingContext]


class _Planned:
    """Deployments of one application that are planned together."""

    def __init__(self) -> None:
        self._roles: frozenset[Role] = frozenset()
        self._planner = FleetPlanner({})
        self._configs: dict[Role, AutoscalingConfig] = {}
        self._ingress: IngressPlanner | None = None
        self._can_switch = False
        self._lent = 0
        self._record: AutoscalingRecord | None = None
        self._warm: dict[str, WarmProcesses] = {}
        self._planned_s = float("-inf")

    def targets(self, contexts: Contexts) -> dict[Any, int]:
        """By the keys of `contexts`; too soon after the last time nothing changes."""
        first = next(iter(contexts.values()))
        now = first.current_time
        if now - self._planned_s < _PERIOD_S:
            return {key: context.target_num_replicas for key, context in contexts.items()}
        self._planned_s = now
        by_role = {role_of(context.deployment_name): context for context in contexts.values()}
        if by_role.keys() != self._roles:  # deployments come one after the other
            self._begin(by_role, now)
        plan, nums = self._plan(by_role, now)
        self._tell(by_role, plan, now)
        for role, config in self._configs.items():
            if by_role[role].current_num_replicas:  # one has told what its process was started with
                self._keep_warm(by_role[role], config, nums[role], now)
        return {key: nums[role_of(context.deployment_name)] for key, context in contexts.items()}

    def _keep_warm(
        self, context: AutoscalingContext, config: AutoscalingConfig, target: int, now: float
    ) -> None:
        name = context.deployment_name
        if name not in self._warm:
            self._warm[name] = WarmProcesses(context.app_name, name, config.forecast.startup_s)
        num = min(config.warm_processes, config.max_replicas - target)
        self._warm[name].keep(num, target, now)

    def _begin(self, by_role: Mapping[Role, AutoscalingContext], now: float) -> None:
        first = next(iter(by_role.values()))
        self._roles = frozenset(by_role)
        ingress = by_role.get(Role.INGRESS)
        self._ingress = None
        if ingress is not None:
            settings = IngressAutoscalingConfig.model_validate(_kwargs(ingress)[_SETTINGS])
            self._ingress = IngressPlanner(settings)
        engines = _engines(by_role)
        self._configs = {
            role: AutoscalingConfig.model_validate(_kwargs(context)[_SETTINGS])
            for role, context in engines.items()
        }
        self._can_switch = len(engines) > 1 and all(
            _kwargs(context).get(_SWITCHING, False) for context in engines.values()
        )
        self._planner = FleetPlanner(self._configs, switches=self._can_switch)
        self._record = record_of(first.app_name)
        if self._can_switch:  # the controller may have started again
            told = {
                role: read_num_switched(each.app_name, each.deployment_name, now) or 0
                for role, each in engines.items()
            }
            self._lent = told[Role.PREFILL] - told[Role.DECODE]

    def _plan(
        self, by_role: Mapping[Role, AutoscalingContext], now: float
    ) -> tuple[FleetPlan, Mapping[Role, int]]:
        """With it, replicas by deployments' roles."""
        plan, nums = self._plan_engines(_engines(by_role), now)
        ingress = by_role.get(Role.INGRESS)
        if self._ingress is None or ingress is None:
            return plan, nums
        decision = self._ingress.plan(
            utilizations(ingress), ingress.current_num_replicas, ingress.target_num_replicas, now
        )
        plan = replace(plan, decisions=(*plan.decisions, decision))
        return plan, {**nums, Role.INGRESS: decision.num_replicas}

    def _plan_engines(
        self, by_role: Mapping[Role, AutoscalingContext], now: float
    ) -> tuple[FleetPlan, Mapping[Role, int]]:
        seen = {role: observation(context, role) for role, context in by_role.items()}
        if not self._can_switch:
            plan = self._planner.plan([*seen.values()], now)
            return plan, {each.role: each.num_replicas for each in plan.decisions}
        switched = {role: switched_replicas(context) for role, context in by_role.items()}
        plan = self._planner.plan(observed_by_role(seen, switched, self._lent), now)
        wanted = {each.role: each.num_replicas for each in plan.decisions}
        for each in plan.switches:
            self._lent += each.num_replicas if each.source is Role.PREFILL else -each.num_replicas
        lent = still_lent(self._lent, plan.decisions)
        deployed = deployed_for(wanted, lent, self._configs)
        self._lent = deployed.lent
        return plan, deployed.num_replicas

    def _tell(
        self, by_role: Mapping[Role, AutoscalingContext], plan: FleetPlan, now: float
    ) -> None:
        application = next(iter(by_role.values())).app_name
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
        switched = None
        if self._can_switch:
            for switch in plan.switches:
                logger.info(
                    "%s: %d %s replicas become %s replicas; %s",
                    application,
                    switch.num_replicas,
                    switch.source.value,
                    switch.target.value,
                    switch.reason,
                )
            nums = Deployed({}, self._lent).num_switched
            switched = {by_role[role].deployment_name: num for role, num in nums.items()}
        assert self._record is not None
        self._record.add(plan, now, switched)


class DeploymentPolicy:
    """One deployment by itself; Serve makes it with `policy_kwargs`."""

    def __init__(self, autoscaling: Mapping[str, Any], switching: bool = False) -> None:
        self._planned = _Planned()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        return self._planned.targets({0: context})[0], {}


class ApplicationPolicy:
    """All deployments of an application that have our `autoscaling`, and no others."""

    def __init__(self) -> None:
        self._planned = _Planned()

    def __call__(
        self, contexts: Mapping[Any, AutoscalingContext]
    ) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        ours = {key: each for key, each in contexts.items() if _SETTINGS in _kwargs(each)}
        return (self._planned.targets(ours) if ours else {}), {}


def autoscaling_options(config: ScalingConfig, switching: bool = False) -> dict[str, Any]:
    """Serve's `autoscaling_config` of a deployment, whose replicas can change their roles with
    `switching`."""
    options: dict[str, Any] = {
        "min_replicas": config.min_replicas,
        "initial_replicas": config.initial_replicas,
        "max_replicas": config.max_replicas,
        "look_back_period_s": config.look_back_period_s,
        # Serve calls it deprecated in favour of the environment, but reads nothing else.
        "metrics_interval_s": config.metrics_interval_s,
    }
    if isinstance(config, AutoscalingConfig) and config.policy == "ongoing-requests":
        return options | {
            "target_ongoing_requests": config.target_ongoing_requests,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.hold_s,
            "downscale_to_zero_delay_s": config.downscale_to_zero_delay_s,
        }
    return options | {
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {
            "policy_function": f"{DeploymentPolicy.__module__}:{DeploymentPolicy.__qualname__}",
            "policy_kwargs": {
                _SETTINGS: config.model_dump(mode="json"),
                _SWITCHING: switching,
            },
        },
    }


def _engines(by_role: Mapping[Role, AutoscalingContext]) -> dict[Role, AutoscalingContext]:
    return {role: context for role, context in by_role.items() if role is not Role.INGRESS}


def _kwargs(context: AutoscalingContext) -> dict[str, Any]:
    """What the deployment's own policy is made with."""
    assert context.config is not None, context.deployment_name
    return context.config.policy.policy_kwargs
