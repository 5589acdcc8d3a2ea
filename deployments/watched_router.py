"""Serve's own router, which also tells this process's streams which replicas are left.

Serve pickles this module by value: what all of a process must share is in another one.
"""

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import RunningReplica

from deployments import live_replicas


class WatchedRouter(PowerOfTwoChoicesRequestRouter):
    """Picks the emptier of two replicas, as Serve does by default."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        # Told before a request can reach any of them: who is not named has been withdrawn.
        deployment = self._deployment_id
        names = frozenset(replica.replica_id.unique_id for replica in replicas)
        live_replicas.of(deployment.app_name, deployment.name).tell(names)
