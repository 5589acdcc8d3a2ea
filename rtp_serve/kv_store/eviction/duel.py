"""Several policies, of which the one decides that does best just now.

    insert, hit ──► the live policy                                    victim
         │ sampled by key
         └────────► ghosts, one a policy ──► score ── each epoch ──► which is live

Each ghost simulates a cache under its policy, smaller than the real one by the rate of sampling:
hit ratios of a cache are about those of a scaled one that sees as large a share of the keys
(Waldspurger et al., SHARDS, FAST 2015). Keys are sampled and not chains by their roots: a root is
often common to most of the traffic (a system prompt), so that a sample of roots is all or nothing.
At most `_GHOST_BLOCKS` a ghost; a cache that is not larger is simulated whole.

Nothing is random, and time is counted in uses of sampled blocks.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.eviction.arc import ARC
from rtp_serve.kv_store.eviction.ghost_cache import GhostCache
from rtp_serve.kv_store.eviction.ghost_list import DIGEST_BYTES
from rtp_serve.kv_store.eviction.handover import MAX_HITS, Handover, Resident, Residents
from rtp_serve.kv_store.eviction.lru import LRU
from rtp_serve.kv_store.eviction.registry import PolicyFactory
from rtp_serve.kv_store.eviction.s3_fifo import S3FIFO
from rtp_serve.kv_store.eviction.score import Score

_GHOST_BLOCKS = 4096
_EPOCH_USES = 1024
_MOVES_PER_USE = 8
_SAMPLE_BYTES = 4
_SAMPLES = 1 << 8 * _SAMPLE_BYTES


class Duel:
    """See `EvictionPolicy`. A switch costs each later use a few moves until it is done; the old
    policy decides until then.

    The order of last use is all that LRU knows, so it can take over at any time. The others have
    learned what no handover tells: one of them begins.
    """

    def __init__(
        self,
        capacity: int,
        factories: Sequence[PolicyFactory] = (S3FIFO, ARC, LRU),
        ghost_blocks: int = _GHOST_BLOCKS,
    ) -> None:
        """`capacity` is in blocks; the first policy begins. `ghost_blocks` is at most how many
        blocks each ghost has."""
        assert capacity > 0, f"a capacity of {capacity} blocks"
        self._capacity = capacity
        self._factories = tuple(factories)
        self._player = 0
        self._live = factories[0](capacity)
        self._residents: Residents = OrderedDict()
        self._handover: Handover | None = None
        ghost_capacity = min(capacity, ghost_blocks)
        self._ghosts = [GhostCache(make(ghost_capacity), ghost_capacity) for make in factories]
        self._sample_below = _SAMPLES * ghost_capacity // capacity
        self._score = Score(len(self._ghosts))
        self._num_uses = 0

    @property
    def player(self) -> int:
        """Which of the policies is live."""
        return self._player

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self._live.insert(key, parent)
        waiting = self._residents if self._handover is None else self._handover.waiting
        waiting[key] = Resident(parent)
        self._used(key, parent)

    def hit(self, key: BlockHash) -> None:
        self._live.hit(key)
        if self._handover is None:
            self._residents.move_to_end(key)
            resident = self._residents[key]
        else:
            resident = self._handover.hit(key)
        resident.num_hits = min(resident.num_hits + 1, MAX_HITS)
        self._used(key, resident.parent)

    def remove(self, key: BlockHash) -> None:
        self._live.remove(key)
        self._leave(key)
        if self._is_sampled(key):
            for ghost in self._ghosts:
                ghost.remove(_digest(key))

    def victim(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        key = self._live.victim(is_evictable)
        if key is not None:
            self._leave(key)
        return key

    def _leave(self, key: BlockHash) -> None:
        if self._handover is None:
            del self._residents[key]
        else:
            self._handover.remove(key)

    def _used(self, key: BlockHash, parent: BlockHash | None) -> None:
        if self._handover is not None and self._handover.move(_MOVES_PER_USE):
            self._end_handover(self._handover)
        if not self._is_sampled(key):
            return
        is_parent_sampled = parent is not None and self._is_sampled(parent)
        above = _digest(parent) if parent is not None and is_parent_sampled else None
        below = _digest(key)
        self._score.add([ghost.use(below, above) for ghost in self._ghosts])
        self._num_uses += 1
        if self._num_uses % _EPOCH_USES == 0:
            self._end_epoch()

    def _end_epoch(self) -> None:
        best = self._score.better_than(self._player)
        self._score.fade()
        if best != self._player and self._handover is None:
            self._start_handover(best)

    def _start_handover(self, player: int) -> None:
        new = self._factories[player](self._capacity)
        self._handover = Handover(new, player, self._residents)
        self._residents = OrderedDict()

    def _end_handover(self, handover: Handover) -> None:
        self._live, self._player = handover.new, handover.player
        self._residents = handover.moved
        self._handover = None

    def check_invariants(self) -> None:
        """The policies check themselves, if they can."""
        handover = self._handover
        policies = [self._live] if handover is None else [self._live, handover.new]
        for policy in policies:
            if isinstance(policy, (LRU, ARC, S3FIFO)):
                policy.check_invariants()
        assert handover is None or not self._residents, "residents are not the handover's"
        assert handover is None or not handover.moved.keys() & handover.waiting.keys()

    def _is_sampled(self, key: BlockHash) -> bool:
        sample = key[DIGEST_BYTES : DIGEST_BYTES + _SAMPLE_BYTES]
        return int.from_bytes(sample, "little") < self._sample_below


def _digest(key: BlockHash) -> BlockHash:
    """Enough of it for a ghost."""
    return BlockHash(key[:DIGEST_BYTES])
