"""Serve's own router, which also tells this process's streams which replicas are left, brings a
call to a given replica where its keyword `replica` names one, else to one whose role it is to take
it, and asks no replica for leave.

With Serve's own, the replica that was chosen for one call takes whichever has waited longest; here
it takes that one.

Asking for leave is what Serve does so that a replica can refuse a call beyond its
`max_ongoing_requests`, which is out of reach here: the call becomes a generator that says yes
first and then what is returned. When a generator ends, Ray 2.60 has the replica's event loop wait
until the caller has confirmed all that it gave. A caller that is stopped never does, so the
replica would hang, and all the others that it had called; all would fail their checks together.

Serve pickles this module by value: what all of a process must share is in another one.
"""

import random

from ray.serve._private.common import RequestMetadata, RunningReplicaInfo
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from deployments import live_replicas
from deployments.role_told import fit_for, told_role


class UnaskedReplica(RunningReplica):
    """Takes any call at once."""

    @property
    def is_cross_language(self) -> bool:
        """What the router looks at to tell whether a replica can be asked for leave; how the call
        is made does not depend on it."""
        return True


class WatchedRouter(PowerOfTwoChoicesRequestRouter):
    """Picks the emptier of two replicas, as Serve does by default."""

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        return UnaskedReplica(replica_info)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        name = pending_request.kwargs.get("replica") if pending_request is not None else None
        named = [each for each in candidate_replicas if each.replica_id.unique_id == name]
        if named:
            return [named]
        # Without a candidate Serve would ask for ever; another replica says that it is not the one,
        # or does what is not its role: a wrong role costs time alone.
        method = pending_request.metadata.call_method if pending_request is not None else ""
        fit = fit_for(method, candidate_replicas)
        if 0 < len(fit) < len(candidate_replicas):
            return [random.sample(fit, min(2, len(fit)))]  # Serve's own passes over who is given
        ranked: list[list[RunningReplica]] = await super().choose_replicas(
            candidate_replicas, pending_request
        )
        return ranked

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        found: PendingRequest | None = self._get_pending_request_matching_internal_request_id(
            request_metadata
        )
        return found

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        # Told before a request can reach any of them: who is not named has been withdrawn.
        deployment = self._deployment_id
        told = {replica.replica_id.unique_id: told_role(replica) for replica in replicas}
        roles = {name: role for name, role in told.items() if role is not None}
        live_replicas.of(deployment.app_name, deployment.name).tell(frozenset(told), roles)
