"""Which prefixes should be in one more place.

Requests that begin alike go where their prefix is, and wait there for each other. A prefix is worth
a copy when those of one half-life would save more time at another worker than it takes to compute:
`wait · rate · half-life > prefill`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rtp_serve.config.routing import ReplicationConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.types import Candidates, Replication

_LN_2 = 0.6931471805599453
"""A count that halves in a half-life, times this, is the requests of one, if they come evenly."""


_GO_ON = 0.8
"""If more of a prefix's requests go on to the next longer one, it is that which is hot."""


@dataclass(slots=True)
class _Watched:
    """A prefix, by its last block."""

    count: float
    """Of requests that began with it, fading."""
    seen_s: float
    copied_s: float = float("-inf")


class HotPrefixes:
    """Watches prefixes of 1, 2, 4, 8 … blocks; the least recently wanted is forgotten first."""

    def __init__(self, config: ReplicationConfig) -> None:
        self._config = config
        self._watched: OrderedDict[BlockHash, _Watched] = OrderedDict()

    def __len__(self) -> int:
        return len(self._watched)

    def note(
        self,
        hashes: Sequence[BlockHash],
        block_size: int,
        candidates: Candidates,
        now: float,
    ) -> Replication | None:
        """A request with these blocks comes: is one of its prefixes worth a copy?"""
        further = 0.0  # requests that begin with the next longer prefix
        counted = [(length, self._count(hashes[length - 1], now)) for length in _lengths(hashes)]
        for length, watched in reversed(counted):
            is_end = further < _GO_ON * watched.count
            further = watched.count
            if not is_end or now - watched.copied_s < self._config.cooldown_s:
                continue
            found = self._worth(watched, hashes[:length], block_size, candidates)
            if found is not None:
                watched.copied_s = now
                return found
        return None

    def _worth(
        self,
        watched: _Watched,
        hashes: Sequence[BlockHash],
        block_size: int,
        candidates: Candidates,
    ) -> Replication | None:
        num_tokens = len(hashes) * block_size
        has = candidates.num_cached_tokens >= min(num_tokens, candidates.num_tokens - 1)
        if not has.any() or has.all():
            return None
        wait_s = candidates.wait_s
        source = int(np.where(has, wait_s, np.inf).argmin())
        target = int(np.where(has, np.inf, wait_s).argmin())
        saved_s = float(wait_s[source] - wait_s[target])
        requests = (watched.count - 1) * _LN_2  # this one has been routed
        cost_s = float(candidates.prefill_s[target]) * num_tokens / candidates.num_tokens
        if saved_s * requests <= cost_s:
            return None
        return Replication(
            candidates.worker_ids[target],
            candidates.worker_ids[source],
            tuple(hashes),
            f"{requests:.3g} requests would save {saved_s:.3g} s each, a copy takes {cost_s:.3g} s",
        )

    def _count(self, key: BlockHash, now: float) -> _Watched:
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched(0.0, now)
            if len(self._watched) > self._config.max_prefixes:
                self._watched.popitem(last=False)
        self._watched.move_to_end(key)
        watched.count *= 0.5 ** ((now - watched.seen_s) / self._config.half_life_s)
        watched.count += 1.0
        watched.seen_s = now
        return watched


def _lengths(hashes: Sequence[BlockHash]) -> list[int]:
    num_blocks = len(hashes)
    return [1 << power for power in range(num_blocks.bit_length()) if 1 << power <= num_blocks]
