"""Blocks as bytes that travel by themselves, for replicas that share no memory.

    [blocks, layers, 2, heads of the model, tile_bytes]

However either side divides heads. The checksum covers all bytes; it is made before they leave and
seen before any of them is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from rtp_serve.disaggregation.protocol import Span
from rtp_serve.disaggregation.transport.parts import BlockCopier, Bytes, KVPart, KVParts
from rtp_serve.errors import WrongLayout


@dataclass(frozen=True, slots=True)
class ExportedBlocks:
    """Some layers of some blocks."""

    data: Bytes
    """One dimension."""

    checksum: bytes
    """16."""


def export_blocks(memory: KVParts, block_ids: Sequence[int], layers: Span) -> ExportedBlocks:
    """A copy. The blocks are held meanwhile. Raises WrongLayout if there are no such blocks."""
    wanted = memory.layers(layers)
    data = np.empty(_shape(wanted, len(block_ids)), np.uint8)
    whole = KVParts((KVPart((0, memory.num_heads), data),))
    BlockCopier(wanted, whole).copy(block_ids, range(len(block_ids)), (0, layers[1] - layers[0]))
    flat = data.reshape(-1)
    return ExportedBlocks(flat, _checksum(flat))


def import_blocks(
    memory: KVParts, block_ids: Sequence[int], layers: Span, exported: ExportedBlocks
) -> bool:
    """Fill `layers` of blocks here; False, and nothing is written, if the checksum differs.

    Raises WrongLayout if the bytes are too many or too few, or there are no such blocks.
    """
    target = memory.layers(layers)
    shape = _shape(target, len(block_ids))
    if exported.data.size != math.prod(shape):
        raise WrongLayout(f"{exported.data.size} bytes cannot be {shape}")
    if _checksum(exported.data) != exported.checksum:
        return False
    whole = KVParts((KVPart((0, memory.num_heads), exported.data.reshape(shape)),))
    BlockCopier(whole, target).copy(range(len(block_ids)), block_ids, (0, layers[1] - layers[0]))
    return True


def _shape(memory: KVParts, num_blocks: int) -> tuple[int, ...]:
    _, num_layers, num_kinds, _, tile_bytes = memory.parts[0].data.shape
    return num_blocks, num_layers, num_kinds, memory.num_heads, tile_bytes


def _checksum(data: Bytes) -> bytes:
    return xxhash.xxh3_128_digest(data.data)
