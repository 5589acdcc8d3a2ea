"""Where everything lies in an arena's file.

    0                  file header, one page: what the arena is, and its epoch
    4096               slab headers, 192 bytes each, one after the other
    payloads_start     payloads, each in whole pages

Slab headers lie together, apart from the payloads: an index that starts anew reads 2 MB of them for
10,000 slabs, and not a page of each; a payload starts at a page, and no page is spent on a header,
which for blocks of 100 KB would be 4 % of the memory. Headers are whole cache lines, so that two
writers never share one.
"""

import struct
from dataclasses import dataclass

import xxhash

from rtp_serve.errors import ArenaMismatch
from rtp_serve.kv_store.slab_header import HEADER_BYTES

FORMAT_VERSION = 1
"""Raised with every change of this layout or of the slab header's."""

PAGE_BYTES = 4096
EPOCH_OFFSET = 2048
"""Of the epoch, 8 bytes: which index of all that ever owned the arena is the present one."""

_MAGIC = b"RTPARENA"
_FIELDS = struct.Struct("<8sIIQQ32s")
"""Magic, version, zero, slab bytes, slabs, layout digest."""

_DIGEST = struct.Struct("<Q")
PREAMBLE_BYTES = _FIELDS.size + _DIGEST.size


@dataclass(frozen=True, slots=True)
class ArenaGeometry:
    """The sizes of an arena."""

    slab_bytes: int
    """Of one block: what a slab has room for."""

    num_slabs: int
    layout_digest: bytes
    """32 bytes that name how a block's bytes lie; arenas of different layouts share nothing."""

    def __post_init__(self) -> None:
        assert self.slab_bytes > 0, f"slabs of {self.slab_bytes} bytes"
        assert self.num_slabs > 0, f"an arena of {self.num_slabs} slabs"
        assert len(self.layout_digest) == 32, f"a digest of {len(self.layout_digest)} bytes"

    @property
    def stride_bytes(self) -> int:
        """From one payload to the next."""
        return _in_pages(self.slab_bytes)

    @property
    def payloads_start(self) -> int:
        return _in_pages(PAGE_BYTES + self.num_slabs * HEADER_BYTES)

    @property
    def total_bytes(self) -> int:
        """Of the whole file."""
        return self.payloads_start + self.num_slabs * self.stride_bytes

    def header_start(self, slab: int) -> int:
        return PAGE_BYTES + slab * HEADER_BYTES

    def payload_start(self, slab: int) -> int:
        return self.payloads_start + slab * self.stride_bytes


def num_slabs_in(num_bytes: int, slab_bytes: int) -> int:
    """How many slabs an arena of at most `num_bytes` has; 0 where none fits."""
    room = num_bytes - 2 * PAGE_BYTES  # the file header, and what rounding adds to slab headers
    return max(0, room // (_in_pages(slab_bytes) + HEADER_BYTES))


def encode_preamble(geometry: ArenaGeometry) -> bytes:
    """The beginning of the file, written when all else is in place."""
    fields = _FIELDS.pack(
        _MAGIC, FORMAT_VERSION, 0, geometry.slab_bytes, geometry.num_slabs, geometry.layout_digest
    )
    return fields + _DIGEST.pack(xxhash.xxh3_64_intdigest(fields))


def decode_preamble(raw: bytes, file_bytes: int) -> ArenaGeometry:
    """Raises ArenaMismatch for what is no whole arena of this version in a file of this length."""
    if len(raw) < PREAMBLE_BYTES or not raw.startswith(_MAGIC):
        raise ArenaMismatch("it is not an arena")
    fields, (digest,) = raw[: _FIELDS.size], _DIGEST.unpack_from(raw, _FIELDS.size)
    _, version, _, slab_bytes, num_slabs, layout_digest = _FIELDS.unpack(fields)
    if version != FORMAT_VERSION:
        raise ArenaMismatch(f"it has format version {version}, this is {FORMAT_VERSION}")
    if xxhash.xxh3_64_intdigest(fields) != digest:
        raise ArenaMismatch("its header's digest differs")
    if not slab_bytes or not num_slabs:
        raise ArenaMismatch(f"it claims {num_slabs} slabs of {slab_bytes} bytes")
    geometry = ArenaGeometry(slab_bytes, num_slabs, layout_digest)
    if geometry.total_bytes != file_bytes:
        raise ArenaMismatch(f"it has {file_bytes} bytes of {geometry.total_bytes}")
    return geometry


def check_equal(found: ArenaGeometry, slab_bytes: int, layout_digest: bytes) -> None:
    """Raises ArenaMismatch if the arena is for blocks of another format.

    The number of slabs is the creator's choice: what is free differs from one start to the next.
    """
    if found.slab_bytes != slab_bytes:
        raise ArenaMismatch(f"it has slabs of {found.slab_bytes} bytes, not {slab_bytes}")
    if found.layout_digest != layout_digest:
        raise ArenaMismatch("its blocks have another layout")


def _in_pages(num_bytes: int) -> int:
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
