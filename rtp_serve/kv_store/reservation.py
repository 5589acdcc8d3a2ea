"""The first half of a put: who may write which block into which slab, and until when."""

from dataclasses import dataclass
from enum import StrEnum

from rtp_serve.kv_cache.block import BlockHash

MAX_TENANT_BYTES = 63
"""Of a tenant's name in UTF-8: what a slab header has room for."""


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A block that somebody would like to store. A batch lists a chain from its beginning."""

    key: BlockHash
    parent: BlockHash | None
    """None for a first block."""

    tenant: str
    namespace_tag: bytes
    """First 8 bytes of the namespace that `key` covers, to tell blocks of old weights."""

    def __post_init__(self) -> None:
        assert len(self.key) == 32, f"a key of {len(self.key)} bytes"
        assert self.parent is None or len(self.parent) == 32, f"a parent of {self.parent!r}"
        assert len(self.namespace_tag) == 8, f"a namespace tag of {len(self.namespace_tag)} bytes"
        assert len(self.tenant_bytes) <= MAX_TENANT_BYTES, f"a tenant named {self.tenant!r}"

    @property
    def tenant_bytes(self) -> bytes:
        """Any string is a name, a lone surrogate (valid in JSON) included."""
        return self.tenant.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slab that `owner`, the process that writes, may write if it begins before `deadline_s`.

    The generation is of this reservation alone: no other, of any index over this arena, had it or
    will have it.
    """

    request: StoreRequest
    slab: int
    generation: int
    owner: str
    deadline_s: float
    """On the node's monotonic clock."""


class RefusalReason(StrEnum):
    """Why there is no reservation. None of them is an error."""

    PRESENT = "present"
    RESERVED = "reserved"
    """Somebody is writing this block, perhaps in the same batch."""

    NO_PARENT = "no parent"
    """Nothing could find the block without the one before it."""

    FULL = "full"
    """Every slab is in use that this tenant may have."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that gets no slab."""

    key: BlockHash
    reason: RefusalReason
