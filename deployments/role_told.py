"""How callers hear of replicas' roles: as `routing_stats`, which Serve asks replicas for and brings
to all routers."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from rtp_serve.routing.types import Role

PERIOD_S = 0.5
"""Between two questions to a replica that can change its role."""

_ROLE = "role"
_WANTED = {"run": Role.DECODE, "prefill": Role.PREFILL}
"""By method of a replica, who is to be asked for it; whatever is not here, all are."""


class Told(Protocol):
    """Serve's RunningReplica."""

    @property
    def routing_stats(self) -> dict[str, Any]: ...


AnyTold = TypeVar("AnyTold", bound=Told)


def routing_stats(role: Role) -> dict[str, str]:
    """What a replica says."""
    return {_ROLE: role.value}


def told_role(replica: Told) -> Role | None:
    """What it has said; None of one that cannot change its role, or has not said yet."""
    said = replica.routing_stats.get(_ROLE)
    return None if said is None else Role(said)


def fit_for(method: str, replicas: Iterable[AnyTold]) -> list[AnyTold]:
    """Those of them that are to be asked for this, as far as they have said what they are."""
    wanted = _WANTED.get(method)
    if wanted is None:
        return [*replicas]
    return [each for each in replicas if told_role(each) in (None, wanted)]
