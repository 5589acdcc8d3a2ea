"""What stands before a slab's bytes: whose they are, and whether they are whole.

A header is 192 bytes, three cache lines, and ends with a digest of the rest that is seeded with the
slab's number. So half a header, or one that two processes wrote at once, is no header.

    EMPTY      zeros: never used
    RESERVED   written by the index's owner before it answers: the bytes are nobody's
    READY      written by the writer after the bytes: they have this length and checksum
    TORN       anything else

The checksum is of the bytes that the writer has, never of those that lie in the slab. Therefore a
READY header is true whoever else writes into the slab, before or after: it says what the key's
bytes are, and a copy with this checksum is the key's.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.reservation import Reservation, StoreRequest

HEADER_BYTES = 192

_FIELDS = struct.Struct("<IIQ32s32s8sQ16sd64p")
"""Mark, whether there is a parent, generation, key, parent, namespace tag, length, checksum,
deadline, tenant."""

_DIGEST = struct.Struct("<Q")
_NOTHING = bytes(HEADER_BYTES)
_NO_CHECKSUM = bytes(16)

assert _FIELDS.size + _DIGEST.size == HEADER_BYTES


class SlabMark(IntEnum):
    """See the module."""

    EMPTY = 0
    RESERVED = 1
    READY = 2
    TORN = 3


@dataclass(frozen=True, slots=True)
class SlabHeader:
    """A header that is whole: RESERVED or READY."""

    mark: SlabMark
    request: StoreRequest
    generation: int
    deadline_s: float
    num_bytes: int = 0
    checksum: bytes = _NO_CHECKSUM


def reserved(reservation: Reservation) -> SlabHeader:
    """The header of a slab that was given to a writer."""
    return SlabHeader(
        SlabMark.RESERVED, reservation.request, reservation.generation, reservation.deadline_s
    )


def ready(reservation: Reservation, num_bytes: int, checksum: bytes) -> SlabHeader:
    """The header of a slab whose bytes are there. Length and checksum are of the writer's bytes."""
    return SlabHeader(
        SlabMark.READY,
        reservation.request,
        reservation.generation,
        reservation.deadline_s,
        num_bytes,
        checksum,
    )


def checksum_of(data: memoryview) -> bytes:
    """XXH3 over the bytes, 128 bits."""
    return xxhash.xxh3_128_digest(data)


def encode(header: SlabHeader, slab: int) -> bytes:
    """The header's `HEADER_BYTES` bytes in this slab."""
    request = header.request
    fields = _FIELDS.pack(
        header.mark,
        request.parent is not None,
        header.generation,
        request.key,
        request.parent or b"",
        request.namespace_tag,
        header.num_bytes,
        header.checksum,
        header.deadline_s,
        request.tenant_bytes,
    )
    return fields + _DIGEST.pack(xxhash.xxh3_64_intdigest(fields, slab))


def decode(raw: bytes, slab: int) -> SlabHeader | None:
    """None for what is no whole header of this slab; `mark_of` tells why."""
    fields, (digest,) = raw[: _FIELDS.size], _DIGEST.unpack_from(raw, _FIELDS.size)
    if xxhash.xxh3_64_intdigest(fields, slab) != digest:
        return None
    values = _FIELDS.unpack(fields)
    mark, has_parent, generation, key, parent, tag, num_bytes, checksum, deadline_s, tenant = values
    above = BlockHash(parent) if has_parent else None
    request = StoreRequest(BlockHash(key), above, tenant.decode("utf-8", "surrogatepass"), tag)
    return SlabHeader(SlabMark(mark), request, generation, deadline_s, num_bytes, checksum)


def ready_at(raw: bytes, location: Location) -> tuple[int, bytes] | None:
    """Length and checksum of the bytes that the location means; None if its slab, as far as this
    header knows, does not have them."""
    fields, (digest,) = raw[: _FIELDS.size], _DIGEST.unpack_from(raw, _FIELDS.size)
    if xxhash.xxh3_64_intdigest(fields, location.slab) != digest:
        return None
    mark, _, generation, key, _, _, num_bytes, checksum, _, _ = _FIELDS.unpack(fields)
    if (mark, generation, key) != (SlabMark.READY, location.generation, location.key):
        return None
    return num_bytes, checksum


def mark_of(raw: bytes, header: SlabHeader | None) -> SlabMark:
    """Of the bytes that were decoded to `header`."""
    if header is not None:
        return header.mark
    return SlabMark.EMPTY if raw == _NOTHING else SlabMark.TORN
