"""A file of the weight store as bytes: the final tensors of one model, ready to be mapped.

    0      preamble: magic, version, sizes, digest of itself and the header
    64     header, JSON: the key and every tensor's place, shape and digest
           zeros
    start  payload: tensors in the header's order, each at a multiple of 64 bytes, zeros between

`start` is a multiple of the page size. Reading a header trusts nothing: what it returns describes
tensors that lie inside a file of exactly this length, in order and apart.
"""

import hashlib
import math
import os
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import msgspec

from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.store.key import StoreKey

FORMAT_VERSION = 2
"""Raised with every change of this layout."""

PAGE_BYTES = 4096
TENSOR_ALIGNMENT = 64
ITEM_BYTES = {"bfloat16": 2, "float32": 4, "uint8": 1}

_MAGIC = b"RTPWGHTS"
_PREAMBLE = struct.Struct("<8sIIQQ32s")
"""Magic, version, header bytes, payload start, total bytes, digest."""

_MAX_HEADER_BYTES = 16 << 20
_DIGEST_BYTES = 32
_NO_DIGEST = "0" * (2 * _DIGEST_BYTES)

Kind = Literal["matrix", "coded", "escapes", "bias", "screen", "vector"]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the payload."""

    path: str
    """The weight's path in the model; what belongs to a matrix has the matrix's."""

    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    """From the start of the payload."""

    digest: str = _NO_DIGEST
    """Of the tensor's bytes, hexadecimal."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds."""

    key: StoreKey
    source: str
    """The checkpoint's directory when the file was written, for people."""

    share: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    """`ContentDigest.share` of the tensors that these were made of, hexadecimal."""

    tensors: tuple[TensorEntry, ...]

    @property
    def payload_start(self) -> int:
        """The digests' width is fixed, so filling them in moves nothing."""
        return _rounded_up(_PREAMBLE.size + len(msgspec.json.encode(self)), PAGE_BYTES)

    @property
    def total_bytes(self) -> int:
        """Of the whole file, zeros at its end included."""
        end = self.tensors[-1].end if self.tensors else 0
        return _rounded_up(self.payload_start + end, PAGE_BYTES)


def lay_out(key: StoreKey, source: str, share: int, tensors: Sequence[TensorEntry]) -> Header:
    """Give every tensor its place. Digests are filled in later, by `with_digests`."""
    placed, end = [], 0
    for tensor in tensors:
        offset = _rounded_up(end, TENSOR_ALIGNMENT)
        placed.append(msgspec.structs.replace(tensor, offset=offset))
        end = placed[-1].end
    return Header(key, source, f"{share:032x}", tuple(placed))


def with_digests(header: Header, digests: Sequence[str]) -> Header:
    """`digests` are of the tensors, in order."""
    tensors = [
        msgspec.structs.replace(tensor, digest=digest)
        for tensor, digest in zip(header.tensors, digests, strict=True)
    ]
    return msgspec.structs.replace(header, tensors=tuple(tensors))


def encode(header: Header) -> bytes:
    """Preamble and header, as they stand at the beginning of the file."""
    data = msgspec.json.encode(header)
    assert len(data) <= _MAX_HEADER_BYTES, f"a header of {len(data)} bytes"
    sizes = len(data), header.payload_start, header.total_bytes
    unsigned = _PREAMBLE.pack(_MAGIC, FORMAT_VERSION, *sizes, b"")[:-_DIGEST_BYTES]
    return unsigned + _digest(unsigned, data) + data


def read_header(descriptor: int) -> Header:
    """Check everything but the payload. Raises CorruptWeights, or OSError from the file system."""
    preamble = os.pread(descriptor, _PREAMBLE.size, 0)
    if len(preamble) < _PREAMBLE.size or not preamble.startswith(_MAGIC):
        raise CorruptWeights("it is not a file of the weight store")
    _, version, header_bytes, start, total, digest = _PREAMBLE.unpack(preamble)
    if version != FORMAT_VERSION:
        raise CorruptWeights(f"it has format version {version}, this is {FORMAT_VERSION}")
    size = os.fstat(descriptor).st_size
    if size != total:
        raise CorruptWeights(f"it has {size} bytes of {total}")
    if header_bytes > min(_MAX_HEADER_BYTES, total):
        raise CorruptWeights(f"its header claims {header_bytes} bytes")
    data = os.pread(descriptor, header_bytes, _PREAMBLE.size)
    if _digest(preamble[:-_DIGEST_BYTES], data) != digest:
        raise CorruptWeights("its header's digest differs")
    try:
        header = msgspec.json.decode(data, type=Header)
    except msgspec.DecodeError as error:
        raise CorruptWeights(f"its header is malformed: {error}") from error
    _check_tensors(header.tensors)
    if (header.payload_start, header.total_bytes) != (start, total):
        raise CorruptWeights("its header does not fit its length")
    return header


def _check_tensors(tensors: Sequence[TensorEntry]) -> None:
    for tensor in tensors:
        name = f"{tensor.kind} {tensor.path}"
        if tensor.dtype not in ITEM_BYTES or min(tensor.shape, default=0) < 0:
            raise CorruptWeights(f"{name} is {tensor.dtype} {list(tensor.shape)}")
        if tensor.offset < 0 or tensor.offset % TENSOR_ALIGNMENT:
            raise CorruptWeights(f"{name} lies at {tensor.offset}")
    for before, after in pairwise(tensors):
        if after.offset < before.end:
            raise CorruptWeights(f"{after.kind} {after.path} lies over the tensor before it")


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _rounded_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
