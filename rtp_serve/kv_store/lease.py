"""Leases: whose reading keeps which blocks in their slabs, and until when.

A lease only spares its holder a miss. Whoever outlives it, or never had one, still gets the right
bytes or none: readers check the slab's header after the copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rtp_serve.kv_cache.block import BlockHash


@dataclass(frozen=True, slots=True)
class Location:
    """Where a block's bytes are, as long as the slab is of this generation."""

    key: BlockHash
    slab: int
    generation: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The blocks that were there of a chain, from its beginning. Held until `deadline_s`."""

    lease_id: int
    owner: str
    locations: tuple[Location, ...]
    deadline_s: float


class LeaseTable:
    """All leases that nobody has given back."""

    def __init__(self, first_id: int) -> None:
        self._leases: dict[int, Lease] = {}
        self._next_id = first_id

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def grant(self, owner: str, locations: tuple[Location, ...], deadline_s: float) -> Lease:
        """A new lease; one of nothing is not kept."""
        lease = Lease(self._next_id, owner, locations, deadline_s)
        self._next_id += 1
        if locations:
            self._leases[lease.lease_id] = lease
        return lease

    def renew(self, lease_id: int, deadline_s: float) -> Lease | None:
        """The lease with its new deadline; None if it is gone."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return None
        self._leases[lease_id] = replace(lease, deadline_s=max(deadline_s, lease.deadline_s))
        return self._leases[lease_id]

    def take(self, lease_id: int) -> Lease | None:
        """End a lease; None if it has ended before."""
        return self._leases.pop(lease_id, None)

    def due(self, now_s: float) -> list[Lease]:
        """Those whose deadline has passed."""
        return [lease for lease in self if lease.deadline_s <= now_s]

    def of(self, owner: str) -> list[Lease]:
        """All of one owner's."""
        return [lease for lease in self if lease.owner == owner]
