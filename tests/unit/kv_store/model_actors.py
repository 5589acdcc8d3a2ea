"""What the model's world is made of: memory written in halves, and who goes through steps."""

from dataclasses import dataclass, replace

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.lease import Lease, Location
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from rtp_serve.kv_store.slab_header import HEADER_BYTES

HALF = HEADER_BYTES // 2
"""Of a header: what is written at once."""


class Violation(AssertionError):
    """A property does not hold."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Memory that is written in halves."""

    header: tuple[bytes, bytes] = (bytes(HALF), bytes(HALF))
    payload: tuple[bytes, bytes] = (b"\0", b"\0")

    def with_half(self, name: str, half: int, data: bytes) -> "Slab":
        halves = list(getattr(self, name))
        halves[half] = data
        return replace(self, **{name: tuple(halves)})


@dataclass(frozen=True, slots=True)
class Writer:
    """Puts the blocks of one batch after the other, in order."""

    name: str
    batches: tuple[tuple[StoreRequest, ...], ...]
    step: str = "reserve"
    reservations: tuple[Reservation, ...] = ()
    num_written: int = 0
    checksum: bytes = b""

    @property
    def current(self) -> Reservation:
        return self.reservations[self.num_written]

    @property
    def after_batch(self) -> "Writer":
        rest = self.batches[1:]
        return Writer(self.name, rest, "reserve" if rest else "done")

    @property
    def is_writing(self) -> bool:
        return self.step in ("low", "high", "seal", "sealed")


@dataclass(frozen=True, slots=True)
class Reader:
    """Gets the blocks that are there of one of several chains."""

    name: str
    chains: tuple[tuple[BlockHash, ...], ...]
    step: str = "acquire"
    lease: Lease | None = None
    num_read: int = 0
    raw: bytes = b""
    copy: bytes = b""
    is_miss: bool = False

    @property
    def current(self) -> Location:
        assert self.lease is not None
        return self.lease.locations[self.num_read]


@dataclass(frozen=True, slots=True)
class Faults:
    """What a careless implementation would do. The explorer has to find each out."""

    checksum_of_slab: bool = False
    """The writer takes the checksum of what lies in the slab."""

    no_checksum: bool = False
    """The reader compares headers only."""

    same_epoch: bool = False
    """An index that starts anew numbers generations as the one before it."""

    no_marks: bool = False
    """The index does not say in the header that a slab is given away."""

    no_quarantine: bool = False
    """The index gives a slab away as soon as a reservation has run out."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How often things that can always happen do happen."""

    ticks: int
    deaths: int
    restarts: int


Actor = Writer | Reader
