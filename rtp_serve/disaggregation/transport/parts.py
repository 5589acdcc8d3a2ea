"""A replica's KV memory as bytes, divided by heads among its ranks, and copies between two such.

A part is [num_blocks, num_layers, 2 (key, value), heads of the part, tile_bytes], uint8. Tiles are
never looked into, so memories of one tile order and any two divisions of heads fit together: each
head goes from some part that has it to all that have it on the other side.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rtp_serve.disaggregation.protocol import MemoryDescriptor, Span
from rtp_serve.errors import WrongLayout

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class KVPart:
    """One rank's heads of every block."""

    heads: Span
    data: Bytes
    """[num_blocks, num_layers, 2, heads, tile_bytes]; a view of the memory."""

    def __post_init__(self) -> None:
        num_heads = self.heads[1] - self.heads[0]
        assert self.data.ndim == 5, f"a part of {self.data.ndim} dimensions"
        assert self.data.shape[2:4] == (2, num_heads), f"{self.data.shape} for {num_heads} heads"


def part_of(buffer: memoryview | mmap.mmap, memory: MemoryDescriptor, heads: Span) -> KVPart:
    """`buffer` holds a part in this order. Raises WrongLayout for other
    sizes."""
    shape = (memory.num_blocks, memory.num_layers, 2, heads[1] - heads[0], memory.tile_bytes)
    data = np.frombuffer(buffer, np.uint8)
    if data.size != np.prod(shape, dtype=np.int64):
        raise WrongLayout(f"a part of {data.size} bytes cannot be {shape}")
    return KVPart(heads, data.reshape(shape))


@dataclass(frozen=True, slots=True)
class KVParts:
    """A whole memory, or some layers of it; in order of rank."""

    parts: tuple[KVPart, ...]

    @property
    def num_blocks(self) -> int:
        return int(self.parts[0].data.shape[0])

    @property
    def num_heads(self) -> int:
        """Of the model."""
        return max(part.heads[1] for part in self.parts)

    def layers(self, layers: Span) -> "KVParts":
        """A view of these layers."""
        begin, end = layers
        return KVParts(tuple(KVPart(p.heads, p.data[:, begin:end]) for p in self.parts))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Heads that one part has and another wants."""

    source: Bytes
    target: Bytes
    """Both [num_blocks, num_layers, 2, heads of the piece, tile_bytes], views."""


class BlockCopier:
    """Copies blocks of one memory into another; made once for a pair. For any thread."""

    def __init__(self, source: KVParts, target: KVParts) -> None:
        """Raises WrongLayout if the source lacks heads that the target has, or blocks differ."""
        self._num_blocks = source.num_blocks, target.num_blocks
        self._pieces = [piece for part in target.parts for piece in _pieces(source, part)]

    def copy(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Span) -> None:
        """Fill `layers` of the target's blocks; in pairs. Without the interpreter's lock.

        Raises WrongLayout for blocks that are not there, before anything is copied.
        """
        assert len(source_ids) == len(target_ids), f"{source_ids} for {target_ids}"
        for ids, num_blocks in zip((source_ids, target_ids), self._num_blocks, strict=True):
            if ids and (min(ids) < 0 or max(ids) >= num_blocks):
                raise WrongLayout(f"blocks {min(ids)} to {max(ids)}, where there are {num_blocks}")
        begin, end = layers
        for source, target, length in _runs(source_ids, target_ids):
            for piece in self._pieces:
                np.copyto(
                    piece.target[target : target + length, begin:end],
                    piece.source[source : source + length, begin:end],
                )


def _pieces(source: KVParts, wanted: KVPart) -> Iterator[_Piece]:
    begin, end = wanted.heads
    while begin < end:
        part = _holder(source, begin)
        stop = min(end, part.heads[1])
        of_source = part.data[..., begin - part.heads[0] : stop - part.heads[0], :]
        of_target = wanted.data[..., begin - wanted.heads[0] : stop - wanted.heads[0], :]
        if of_source.shape[1:] != of_target.shape[1:]:
            raise WrongLayout(
                f"(layers, 2, heads, bytes) are {of_source.shape[1:]} there and "
                f"{of_target.shape[1:]} here"
            )
        yield _Piece(of_source, of_target)
        begin = stop


def _holder(source: KVParts, head: int) -> KVPart:
    """Of the parts that have this head, the one that has most of those after it."""
    holders = [part for part in source.parts if part.heads[0] <= head < part.heads[1]]
    if not holders:
        raise WrongLayout(f"nobody has head {head}")
    return max(holders, key=lambda part: part.heads[1])


def _runs(source_ids: Sequence[int], target_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(source, target, length) of pairs that are neighbours on both sides."""
    begin = 0
    for i in range(1, len(source_ids) + 1):
        if (
            i == len(source_ids)
            or source_ids[i] != source_ids[i - 1] + 1
            or target_ids[i] != target_ids[i - 1] + 1
        ):
            yield source_ids[begin], target_ids[begin], i - begin
            begin = i
