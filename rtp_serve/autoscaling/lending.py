"""Replicas lent from one deployment to the other: numbers of roles ⇄ numbers of deployments.

prefill replicas = of the prefill deployment − lent      lent < 0: the other way round
decode replicas  = of the decode deployment  + lent
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rtp_serve.autoscaling.types import Observation, ScalingDecision
from rtp_serve.config.autoscaling import AutoscalingConfig
from rtp_serve.routing.roles import OTHER_ROLES
from rtp_serve.routing.types import Role


@dataclass(frozen=True, slots=True)
class Deployed:
    """How many replicas each deployment has, by its role, and how many of them are lent."""

    num_replicas: Mapping[Role, int]

    lent: int = 0
    """From prefill to decode."""

    def num_in_role(self, role: Role) -> int:
        """Replicas that do this work, or will."""
        return self.num_replicas[role] + _gain(role, self.lent)

    @property
    def num_switched(self) -> dict[Role, int]:
        """Of each deployment, how many have the other role."""
        return {Role.PREFILL: max(0, self.lent), Role.DECODE: max(0, -self.lent)}


def observed_by_role(
    deployments: Mapping[Role, Observation], switched: Mapping[Role, frozenset[str]], lent: int
) -> list[Observation]:
    """What is seen of each role, from what is seen of each deployment and which of its replicas say
    that they have switched."""
    targets = Deployed({role: each.num_target for role, each in deployments.items()}, lent)
    return [
        _of_role(role, deployments, switched, targets.num_in_role(role)) for role in deployments
    ]


def _of_role(
    role: Role,
    deployments: Mapping[Role, Observation],
    switched: Mapping[Role, frozenset[str]],
    num_target: int,
) -> Observation:
    home, other = deployments[role], deployments[OTHER_ROLES[role]]
    gone, come = switched[role], switched[OTHER_ROLES[role]]
    loads = {name: load for name, load in home.loads.items() if name not in gone}
    loads |= {name: load for name, load in other.loads.items() if name in come}
    num_running = home.num_running - len(gone) + len(come)
    return replace(home, loads=loads, num_running=max(0, num_running), num_target=num_target)


def still_lent(lent: int, decisions: Iterable[ScalingDecision]) -> int:
    """Where a role is to have fewer replicas, those that are lent to it go home first."""
    borrower = Role.DECODE if lent > 0 else Role.PREFILL
    fewer = sum(
        max(0, each.num_before - each.num_replicas) for each in decisions if each.role is borrower
    )
    return max(0, lent - fewer) if lent > 0 else min(0, lent + fewer)


def deployed_for(
    wanted: Mapping[Role, int], lent: int, configs: Mapping[Role, AutoscalingConfig]
) -> Deployed:
    """Deployments that give as many replicas in each role as are `wanted`, with as few others than
    `lent` lent as their bounds allow."""
    least, most = _bounds(wanted, configs)
    # Bounds that have changed may leave no way but to lend nothing.
    possible = min(max(lent, least), most) if least <= most else 0
    nums = {role: num - _gain(role, possible) for role, num in wanted.items()}
    return Deployed(nums, possible)


def _bounds(
    wanted: Mapping[Role, int], configs: Mapping[Role, AutoscalingConfig]
) -> tuple[int, int]:
    """The fewest and the most that prefill can lend. A deployment keeps one replica in its role, so
    it lends none where nobody has that role."""
    prefill, decode = wanted[Role.PREFILL], wanted[Role.DECODE]
    of_prefill, of_decode = configs[Role.PREFILL], configs[Role.DECODE]
    least = max(of_prefill.min_replicas - prefill, decode - of_decode.max_replicas)
    most = min(of_prefill.max_replicas - prefill, decode - of_decode.min_replicas)
    return max(least, 0) if not decode else least, min(most, 0) if not prefill else most


def _gain(role: Role, lent: int) -> int:
    return lent if role is Role.DECODE else -lent
