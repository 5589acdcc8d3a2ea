"""What an engine asks of its node's KV store, wherever the store runs.

The answers are metadata. Blocks themselves the engine writes into the arena and reads from arena
and disk on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockNews
from rtp_serve.kv_store.disk.record import DiskLocation
from rtp_serve.kv_store.disk.stats import DiskStats
from rtp_serve.kv_store.index_stats import IndexStats
from rtp_serve.kv_store.lease import Lease, Location
from rtp_serve.kv_store.reservation import Refusal, Reservation, StoreRequest
from rtp_serve.kv_store.tier_counts import Tier


@dataclass(frozen=True, slots=True)
class Found:
    """The blocks that are there of a chain, from its beginning: the arena's, then the disk's."""

    lease: Lease
    """Of the arena's; to be released."""

    on_disk: tuple[DiskLocation, ...] = ()

    def __len__(self) -> int:
        return len(self.lease.locations) + len(self.on_disk)


@dataclass(frozen=True, slots=True)
class FetchedBlock:
    """A block that came from another node's arena."""

    payload: npt.NDArray[np.uint8]
    checksum: bytes
    """Of the bytes that the key means: the payload is to be compared with it."""


@dataclass(frozen=True, slots=True)
class TierPosition:
    """How far somebody has followed one tier of a store."""

    epoch: int
    """Another number in each life of the store's process, and a higher one."""

    version: int


@dataclass(frozen=True, slots=True)
class TierNews:
    """What can be found in a tier, or what has changed of it."""

    tier: Tier

    since: int
    """The version before; of no meaning where `blocks` are all."""

    position: TierPosition
    """After it."""

    blocks: BlockNews
    """The last word on each block, whichever of the changes are known already."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """A node's store at one moment."""

    host: IndexStats
    slab_bytes: int
    num_slabs: int
    disk: DiskStats | None
    """None without a disk tier."""

    num_to_spill: int
    """Blocks that wait for the disk."""

    num_not_spilled: int
    """Blocks that the disk was too slow for, since the start."""

    @property
    def is_answering(self) -> bool:
        """False for what stands for the answer of a store that gave none: it has no slabs."""
        return self.num_slabs > 0


class StoreClient(Protocol):
    """Thread-safe. Methods may wait for another process; none raises for a store that is gone:
    then nothing is found and nothing taken. `owner` is a process, see `member_name`."""

    def reserve(
        self, requests: Sequence[StoreRequest], owner: str
    ) -> tuple[Reservation | Refusal, ...]:
        """See `BlockIndex.reserve`."""
        ...

    def complete(self, reservations: Sequence[Reservation]) -> tuple[bool, ...]:
        """The slabs are written: whether each block can be found now."""
        ...

    def abandon(self, reservations: Sequence[Reservation]) -> None:
        """The slabs are not written and never will be."""
        ...

    def find(self, chain: Sequence[BlockHash], owner: str) -> Found:
        """What is there of a chain. The arena's part is held until `release`."""
        ...

    def fetch(self, chain: Sequence[BlockHash]) -> Sequence[FetchedBlock]:
        """What another node's arena has of a chain, from its beginning; nothing where no other node
        is asked."""
        ...

    def release(self, lease_id: int) -> None:
        """End a lease."""
        ...

    def note_decoding(self, owner: str, is_decoding: bool) -> None:
        """Whether a process's sequences decode, beside which the disk is written little by little.
        Returns at once."""
        ...

    def mismatch(self, location: Location | DiskLocation) -> None:
        """A reader did not find there what the location says."""
        ...

    def pin(self, chain: Sequence[BlockHash], owner: str, expires_s: float | None) -> int:
        """Keep what is there of a chain in the arena, until a time on the node's monotonic clock or
        for as long as the owner lives; how many blocks that are."""
        ...

    def news(self, known: Mapping[Tier, TierPosition]) -> tuple[TierNews, ...]:
        """What somebody does not know who has followed the tiers so far; all of a tier that he has
        not followed, or in another life of it."""
        ...

    def trim(self, num_bytes: int) -> int:
        """Give up blocks of at least so many bytes of the arena; how many bytes could go."""
        ...

    def stats(self) -> StoreStats:
        """The present, and counts."""
        ...

    def close(self) -> None:
        """The client is not used again."""
        ...
