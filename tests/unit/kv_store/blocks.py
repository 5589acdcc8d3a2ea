"""Chains, requests and an index over slabs that are only numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rtp_serve.kv_cache.block import BlockHash, chain_hash, root_hash
from rtp_serve.kv_store.arena import SlabRecord
from rtp_serve.kv_store.index import BlockIndex, IndexLimits
from rtp_serve.kv_store.reservation import Refusal, RefusalReason, Reservation, StoreRequest
from rtp_serve.kv_store.slab_header import SlabMark

SLAB_BYTES = 100
TAG = b"weights1"
LIMITS = IndexLimits(session_s=10, quarantine_s=60, lease_s=20)


class LRU:
    """The simplest policy: the longest unused goes first."""

    def __init__(self) -> None:
        self.keys: dict[BlockHash, None] = {}

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        assert key not in self.keys
        self.keys[key] = None

    def hit(self, key: BlockHash) -> None:
        del self.keys[key]
        self.keys[key] = None

    def remove(self, key: BlockHash) -> None:
        del self.keys[key]

    def victim(self, is_evictable: Callable[[BlockHash], bool]) -> BlockHash | None:
        key = next(filter(is_evictable, self.keys), None)
        if key is not None:
            del self.keys[key]
        return key


class Marks:
    """Remembers what was marked, in order."""

    def __init__(self) -> None:
        self.reservations: list[Reservation] = []

    def mark_reserved(self, reservation: Reservation) -> None:
        self.reservations.append(reservation)


def make_chain(length: int, salt: str = "") -> list[BlockHash]:
    hashes: list[BlockHash] = []
    parent = root_hash(b"test", salt)
    for i in range(length):
        parent = chain_hash(parent, [i] * 16)
        hashes.append(parent)
    return hashes


def requests_of(
    chain: Sequence[BlockHash], start: int = 0, tenant: str = "t"
) -> list[StoreRequest]:
    """For the blocks of a chain from `start` on."""
    parents = [None, *chain]
    return [StoreRequest(chain[i], parents[i], tenant, TAG) for i in range(start, len(chain))]


def empty_records(num_slabs: int) -> list[SlabRecord]:
    return [SlabRecord(slab, SlabMark.EMPTY, None) for slab in range(num_slabs)]


def make_index(
    num_slabs: int = 4,
    *,
    records: Iterable[SlabRecord] | None = None,
    epoch: int = 1,
    now_s: float = 0,
    limits: IndexLimits = LIMITS,
    quotas: Mapping[str, int] | None = None,
    marks: Marks | None = None,
    policy: LRU | None = None,
) -> BlockIndex:
    return BlockIndex(
        empty_records(num_slabs) if records is None else records,
        SLAB_BYTES,
        epoch,
        policy or LRU(),
        marks or Marks(),
        now_s,
        limits,
        quotas,
    )


def reserve(
    index: BlockIndex, requests: Sequence[StoreRequest], owner: str = "w", now_s: float = 0
) -> list[Reservation]:
    """All of them; none may be refused."""
    answers = index.reserve(requests, owner, now_s)
    reservations = [answer for answer in answers if isinstance(answer, Reservation)]
    assert len(reservations) == len(requests), answers
    return reservations


def store(
    index: BlockIndex, chain: Sequence[BlockHash], start: int = 0, tenant: str = "t"
) -> list[Reservation]:
    """Put the blocks of a chain from `start` on."""
    reservations = reserve(index, requests_of(chain, start, tenant))
    assert all(index.complete(reservations))
    return reservations


def reasons(answers: Sequence[Reservation | Refusal]) -> list[RefusalReason | None]:
    """None for a reservation."""
    return [answer.reason if isinstance(answer, Refusal) else None for answer in answers]


def found(index: BlockIndex, chain: Sequence[BlockHash], now_s: float = 0) -> int:
    """How many blocks of a chain there are; nothing is held."""
    lease = index.acquire(chain, "probe", now_s)
    index.release(lease.lease_id)
    return len(lease.locations)
