"""Which weights a checkpoint has: a digest of every tensor that the model is made of.

It is made of the bytes as they are read for the load, by the threads that read them. Two copies of
a checkpoint have one identity, on whatever node; one that differs in a byte of a tensor, in a name,
a shape or a type has another. Tensors that the model has no use for have no say, nor have names,
times and places of files.

What is digested is a unit, a few rows of one tensor, with its place in the tensor; the digests are
added up. So it does not matter who has read what: where ranks divide a model, each has an identity
of its own and a share, what of the sum no rank before it has. The shares of all ranks add up to the
sum of one that reads everything.

XXH3 of 128 bits tells apart what differs by accident, not what somebody made so that it would not.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import xxhash

from rtp_serve.loader.read_plan import Piece, Read, row_bytes_of, rows_per_unit
from rtp_serve.loader.safetensors_header import StoredTensor

Span = tuple[int, int]
"""Rows, [begin, end)."""

RowsElsewhere = Mapping[str, Sequence[Span]]
"""Tensor → rows that ranks before this one read, and count."""

_SUM = 1 << 128
_SEED = 1 << 64


class ContentDigest:
    """Of one load. For any number of threads, and for reads in any order."""

    def __init__(self, elsewhere: RowsElsewhere | None = None) -> None:
        self._lock = threading.Lock()
        self._tensors: dict[str, StoredTensor] = {}
        self._elsewhere = elsewhere or {}
        self._sum = self._share = 0

    def add(self, read: Read, data: memoryview) -> None:
        """A read's bytes, which are not kept."""
        added = share = 0
        for piece in read.pieces:
            place, row_bytes, spans = (
                _place(piece.tensor),
                row_bytes_of(piece.tensor),
                _units(piece),
            )
            origin = piece.start - piece.first_row * row_bytes  # of the tensor's first row
            digests = [
                xxhash.xxh3_128_intdigest(
                    data[origin + begin * row_bytes : origin + end * row_bytes],
                    (place + begin) % _SEED,
                )
                for begin, end in spans
            ]
            elsewhere = self._elsewhere.get(piece.tensor.name)
            added += sum(digests)
            share += sum(_own(digests, spans, elsewhere) if elsewhere else digests)
        with self._lock:
            self._sum += added
            self._share += share
            self._tensors |= {piece.tensor.name: piece.tensor for piece in read.pieces}

    def identity(self) -> str:
        """Of all that was added, once that is all."""
        tensors = [
            (name, tensor.dtype, tensor.shape) for name, tensor in sorted(self._tensors.items())
        ]
        manifest = json.dumps([tensors, self._sum % _SUM])
        return hashlib.blake2b(manifest.encode(), digest_size=32).hexdigest()

    def share(self) -> int:
        """Of the sum, what no rank before this one counts: to be added up by `total`."""
        return self._share % _SUM


def total(shares: Sequence[int]) -> int:
    """Of all ranks."""
    return sum(shares) % _SUM


def _place(tensor: StoredTensor) -> int:
    """A seed for the tensor's first row."""
    name = json.dumps([tensor.name, tensor.dtype, tensor.shape])
    return xxhash.xxh3_64_intdigest(name.encode())


def _units(piece: Piece) -> list[Span]:
    """Rows of the tensor; the first and the last unit may be parts, where reads are small."""
    unit, begin, end = (
        rows_per_unit(piece.tensor),
        piece.first_row,
        piece.first_row + piece.num_rows,
    )
    return [*pairwise((begin, *range((begin // unit + 1) * unit, end, unit), end))]


def _own(digests: Iterable[int], units: Iterable[Span], elsewhere: Sequence[Span]) -> Iterator[int]:
    """Of the units that none of those before has read."""
    for digest, (begin, end) in zip(digests, units, strict=True):
        if not any(low < end and begin < high for low, high in elsewhere):
            yield digest
