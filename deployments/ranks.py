"""Ranks of one engine as actors in the bundles of its replica's placement group.

    bundle 0   EngineReplica, rank 0 in its process
    bundle k   RankActor, one other rank

Ranks follow the bundles by node, the replica's own node first, so that neighbours in the order of
ranks share a node. Actors are the replica's: they go when it does.
"""

from collections.abc import Sequence

import msgspec
import ray
from ray.actor import ActorHandle
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deployments.actors import RankActor
from rtp_serve.errors import ConfigError
from rtp_serve.worker.ranks.plan import RankPlan


class RankActorProcess:
    """A follower in its actor."""

    def __init__(self, actor: ActorHandle, plan: RankPlan) -> None:
        self._actor = actor
        # ends when the follower does
        self._life = actor.follow.remote(msgspec.msgpack.encode(plan))

    @property
    def is_alive(self) -> bool:
        ended, _ = ray.wait([self._life], timeout=0, fetch_local=False)
        return not ended

    def kill(self) -> None:
        ray.kill(self._actor)

    def dismiss(self) -> None:
        """The process is the actor's, and goes with it."""
        self.kill()


class BundleStarter:
    """The bundles of this process's placement group."""

    def __init__(self, world_size: int) -> None:
        """Raises ConfigError if they are not as many."""
        self._group = _own_group()
        node_by_bundle = placement_group_table(self._group)["bundles_to_node_id"]
        own_node = ray.get_runtime_context().get_node_id()
        self._bundles = ranks_of_bundles(node_by_bundle, own_node)
        self._nodes = [node_by_bundle[index] for index in self._bundles]
        if len(self._bundles) != world_size:
            raise ConfigError(
                f"engine.parallel: {world_size} ranks in a placement group of "
                f"{len(self._bundles)} bundles"
            )

    @property
    def nodes(self) -> Sequence[str]:
        return self._nodes

    @property
    def host(self) -> str:
        is_one_node = len(set(self._nodes)) == 1
        return "127.0.0.1" if is_one_node else str(get_node_ip_address())

    def start(self, plan: RankPlan) -> RankActorProcess:
        bundle = self._bundles[plan.rank]
        resources = dict(self._group.bundle_specs[bundle])
        strategy = PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=bundle
        )
        actor = ray.remote(RankActor).options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            scheduling_strategy=strategy,
            max_restarts=0,
        )
        return RankActorProcess(actor.remote(), plan)


def ranks_of_bundles(node_by_bundle: dict[int, str], own_node: str) -> list[int]:
    """The bundle of each rank: bundle 0 first, which is on `own_node`, then by node."""
    assert node_by_bundle[0] == own_node, "the replica is in bundle 0"
    return sorted(
        node_by_bundle, key=lambda i: (node_by_bundle[i] != own_node, node_by_bundle[i], i)
    )


def _own_group() -> PlacementGroup:
    group = ray.util.get_current_placement_group()
    assert group is not None, "a replica of several ranks has a placement group"
    return group
