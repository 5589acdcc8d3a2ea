"""All roles of an application: each planned by itself, then replicas lent between them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rtp_serve.autoscaling.planner import RolePlanner
from rtp_serve.autoscaling.types import FleetPlan, Observation, RoleSwitch, ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.routing.types import Role

_SWITCHING = (Role.PREFILL, Role.DECODE)


class FleetPlanner:
    """Before replicas of one role start, those that the other can spare are proposed to switch."""

    def __init__(
        self, configs: Mapping[Role, AutoscalingConfig], *, switches: bool = False
    ) -> None:
        """`switches`: somebody follows the proposals, so fewer replicas are ordered. Else they are
        but told."""
        self._configs = configs
        self._planners = {role: RolePlanner(config) for role, config in configs.items()}
        self._switches = switches

    def plan(self, seen: Sequence[Observation], now: float) -> FleetPlan:
        """Of the roles that are observed, each once."""
        decisions = {each.role: self._planners[each.role].plan(each, now) for each in seen}
        switch = self._switch(decisions)
        if switch is None:
            return FleetPlan(tuple(decisions.values()))
        if self._switches:
            for role, sign in ((switch.source, -1), (switch.target, 1)):
                before = decisions[role].num_before + sign * switch.num_replicas
                num = max(before, decisions[role].num_replicas) if sign > 0 else before
                decisions[role] = replace(
                    decisions[role], num_replicas=num, num_before=before, reason=switch.reason
                )
        return FleetPlan(tuple(decisions.values()), (switch,))

    def _switch(self, decisions: Mapping[Role, ScalingDecision]) -> RoleSwitch | None:
        for source, target in (_SWITCHING, _SWITCHING[::-1]):
            if source not in decisions or target not in decisions:
                continue
            giver, taker = decisions[source], decisions[target]
            least = max(1, self._configs[source].min_replicas)
            spare = giver.num_before - max(giver.num_needed, least)
            num = min(spare, taker.num_replicas - taker.num_before)
            if num > 0:
                reason = (
                    f"{source.value} has had {spare} to spare of late, {target.value} lacks "
                    f"{taker.num_replicas - taker.num_before}"
                )
                return RoleSwitch(source, target, num, reason)
        return None
