"""Other nodes' KV stores: what this node has not, one of them may have.

Each is asked how much of a chain it has; the one with most gives copies, through Ray's object
store. Which stores there are is looked up now and then. One that does not answer is left out until
the next look.
"""

from collections.abc import Sequence

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from deployments.actors import NAMESPACE, StorePlan
from rtp_serve.clock import Clock
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.client import FetchedBlock
from rtp_serve.kv_store.member import member_name

_LOOK_AGAIN_S = 5.0
_COUNT_TIMEOUT_S = 0.05
_READ_TIMEOUT_S = 2.0
_MAX_BYTES = 128 << 20
"""Fetched at once."""


class OtherStores:
    """For one thread, and no event loop: calls block, for a few seconds at most."""

    def __init__(self, plan: StorePlan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._owner = member_name()
        self._stores: list[ActorHandle] = []
        self._looked_s: float | None = None

    def fetch(self, chain: Sequence[BlockHash]) -> Sequence[FetchedBlock]:
        """The most that one other node's arena has of a chain, from its beginning."""
        self._look()
        chain = chain[: max(1, _MAX_BYTES // self._plan.spec.block_bytes)]
        best, num_blocks = self._best(chain)
        if best is None:
            return ()
        try:
            blocks: list[FetchedBlock] = ray.get(
                best.read.remote(chain[:num_blocks], self._owner), timeout=_READ_TIMEOUT_S
            )
        except RayError:
            self._stores.remove(best)
            return ()
        return blocks

    def _best(self, chain: Sequence[BlockHash]) -> tuple[ActorHandle | None, int]:
        """The store with most blocks, and how many; None if nobody has any."""
        counts = {store.count.remote(chain): store for store in self._stores}
        best, most = None, 0
        done: list[ray.ObjectRef] = []
        if counts:
            done, _ = ray.wait(
                list(counts), num_returns=len(counts), timeout=_COUNT_TIMEOUT_S, fetch_local=True
            )
        for ref in done:
            try:
                count = ray.get(ref)
            except RayError:
                self._stores.remove(counts[ref])
                continue
            if count > most:
                best, most = counts[ref], count
        return best, most

    def _look(self) -> None:
        """Find the stores that there are, if that is not known from just now."""
        now_s = self._clock.monotonic()
        if self._looked_s is not None and now_s - self._looked_s < _LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        self._stores = []
        for each in ray.util.list_named_actors(all_namespaces=True):
            if each["namespace"] == NAMESPACE and self._plan.is_another_node_s(each["name"]):
                try:
                    self._stores.append(ray.get_actor(each["name"], NAMESPACE))
                except ValueError:  # it has ended meanwhile
                    continue
