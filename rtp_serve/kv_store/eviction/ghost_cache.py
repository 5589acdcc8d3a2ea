"""What a policy would have kept: a cache of digests that nobody reads from."""

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction_policy import EvictionPolicy


class GhostCache:
    """Simulates a cache of its own policy, of which every block is idle."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        """`policy` is empty and becomes the ghost's own; `capacity` is in blocks."""
        self._policy = policy
        self._capacity = capacity
        self._keys: set[BlockHash] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def use(self, key: BlockHash, parent: BlockHash | None) -> bool:
        """A block was wanted: whether it was here. It is now."""
        if key in self._keys:
            self._policy.hit(key)
            return True
        if len(self._keys) == self._capacity:
            victim = self._policy.victim(lambda _: True)
            assert victim is not None, "no block of a full ghost is a leaf"
            self._keys.remove(victim)
        self._policy.insert(key, parent)
        self._keys.add(key)
        return False

    def remove(self, key: BlockHash) -> None:
        """The block's bytes are no good to anybody; it may not be here."""
        if key in self._keys:
            self._keys.remove(key)
            self._policy.remove(key)
