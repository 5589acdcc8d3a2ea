"""One block on disk: a page of header, then the payload, filled up with zeros to whole pages.

    0      header, 256 bytes with its digest at the end; zeros
    4096   payload, from a page boundary on, so that it is read straight into place
           zeros

A header says where it belongs: one that a disk put elsewhere, or that lies in a copy of another
file, is none. The checksum in it is the one that the arena has, of the bytes that the key means and
not of those that lie here: a copy with this checksum is the key's, whatever the disk did.
"""

import struct
from dataclasses import dataclass

import xxhash

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, rounded_up
from rtp_serve.kv_store.reservation import StoreRequest

FORMAT_VERSION = 1
"""Of records and segments; raised with every change of either layout."""

HEADER_BYTES = 256

_MAGIC = b"RTPKVREC"
_FIELDS = struct.Struct("<8sIIQQQ32s32s8s16s64p56x")
"""Magic, version, whether there is a parent, segment, offset, length, key, parent, namespace tag,
checksum, tenant, zeros."""

_DIGEST = struct.Struct("<Q")

assert _FIELDS.size + _DIGEST.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class DiskLocation:
    """Where a block's bytes are, for a reader in any process.

    It never comes to mean anything else: offsets of a segment are written once, and the checksum
    tells. A location that is out of date finds nothing, or still the same bytes.
    """

    key: BlockHash
    segment: int
    offset: int
    """Of the record in its segment, in bytes."""

    num_bytes: int
    """Of the payload."""

    checksum: bytes
    """Of the payload, see `checksum_of`."""

    @property
    def record_bytes(self) -> int:
        """Header and zeros included."""
        return record_bytes(self.num_bytes)

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.offset + self.record_bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A block that is on disk: what was asked to be stored, and where it is."""

    request: StoreRequest
    location: DiskLocation

    @property
    def key(self) -> BlockHash:
        return self.location.key


def record_bytes(num_bytes: int) -> int:
    """What a record with so long a payload takes, header and zeros included."""
    return PAGE_BYTES + rounded_up(num_bytes)


def encode_header(record: Record) -> bytes:
    """The header's `HEADER_BYTES` bytes."""
    request, location = record.request, record.location
    fields = _FIELDS.pack(
        _MAGIC,
        FORMAT_VERSION,
        request.parent is not None,
        location.segment,
        location.offset,
        location.num_bytes,
        request.key,
        request.parent or b"",
        request.namespace_tag,
        location.checksum,
        request.tenant_bytes,
    )
    return fields + _DIGEST.pack(xxhash.xxh3_64_intdigest(fields))


def is_header_of(raw: bytes, location: DiskLocation) -> bool:
    """Whether it is a whole header, of the record that the location means."""
    fields, (digest,) = raw[: _FIELDS.size], _DIGEST.unpack_from(raw, _FIELDS.size)
    if xxhash.xxh3_64_intdigest(fields) != digest:
        return False
    magic, version, _, segment, offset, num_bytes, key, _, _, checksum, _ = _FIELDS.unpack(fields)
    found = DiskLocation(key, segment, offset, num_bytes, checksum)
    return (magic, version) == (_MAGIC, FORMAT_VERSION) and found == location


def decode_header(raw: bytes) -> Record | None:
    """None for what is no whole header. Whether it belongs where it lies, the caller sees."""
    fields, (digest,) = raw[: _FIELDS.size], _DIGEST.unpack_from(raw, _FIELDS.size)
    if xxhash.xxh3_64_intdigest(fields) != digest:
        return None
    magic, version, has_parent, segment, offset, num_bytes, *rest = _FIELDS.unpack(fields)
    if (magic, version) != (_MAGIC, FORMAT_VERSION):
        return None
    key, parent, tag, checksum, tenant = rest
    above = BlockHash(parent) if has_parent else None
    request = StoreRequest(BlockHash(key), above, tenant.decode("utf-8", "surrogatepass"), tag)
    return Record(request, DiskLocation(request.key, segment, offset, num_bytes, checksum))
