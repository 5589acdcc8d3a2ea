"""How callers hear of replicas' roles: as `routing_stats`, which Serve asks replicas for and brings
to all routers."""

from typing import Any, Protocol

from rtp_serve.routing.types import Role

PERIOD_S = 0.5
"""Between two questions to a replica that can change its role."""

_ROLE = "role"


class Told(Protocol):
    """Serve's RunningReplica."""

    @property
    def routing_stats(self) -> dict[str, Any]: ...


def routing_stats(role: Role) -> dict[str, str]:
    """What a replica says."""
    return {_ROLE: role.value}


def told_role(replica: Told) -> Role | None:
    """What it has said; None of one that cannot change its role, or has not said yet."""
    said = replica.routing_stats.get(_ROLE)
    return None if said is None else Role(said)
