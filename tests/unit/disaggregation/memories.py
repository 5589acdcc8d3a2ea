"""Small KV memories whose every tile tells where it is."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from rtp_serve.disaggregation.protocol import MemoryDescriptor, Span, describe
from rtp_serve.disaggregation.transport.parts import KVPart, KVParts
from rtp_serve.kv_cache.spec import KVCacheSpec, TileOrder

NUM_LAYERS, NUM_HEADS, NUM_BLOCKS = 4, 4, 6
SPEC = KVCacheSpec(NUM_LAYERS, NUM_HEADS, head_dim=2, block_size=4)
MEMORY: MemoryDescriptor = describe(SPEC, TileOrder.PLAIN, NUM_BLOCKS)
TILE_BYTES = MEMORY.tile_bytes

WHOLE: tuple[Span, ...] = ((0, 4),)
HALVES: tuple[Span, ...] = ((0, 2), (2, 4))
THIRDS: tuple[Span, ...] = ((0, 1), (1, 2), (2, 4))
DOUBLED: tuple[Span, ...] = tuple((head, head + 1) for head in range(4) for _ in range(2))
"""More ranks than heads: each head is held twice."""


def content(tag: int, layers: Span = (0, NUM_LAYERS)) -> np.ndarray:
    """[layers, 2, all heads, tile_bytes]: bytes that no other tag has at any place."""
    return _whole(tag)[layers[0] : layers[1]]


@cache
def _whole(tag: int) -> np.ndarray:
    rng = np.random.default_rng(tag)
    return rng.integers(0, 256, (NUM_LAYERS, 2, NUM_HEADS, TILE_BYTES), np.uint8)


def empty(division: Sequence[Span] = WHOLE, num_blocks: int = NUM_BLOCKS) -> KVParts:
    return KVParts(
        tuple(KVPart(heads, np.zeros(_shape(num_blocks, heads), np.uint8)) for heads in division)
    )


def filled(division: Sequence[Span], tags: Sequence[int]) -> KVParts:
    """Block i has the content of tags[i]."""
    memory = empty(division, len(tags))
    for block_id, tag in enumerate(tags):
        write(memory, block_id, content(tag), (0, NUM_LAYERS))
    return memory


def write(memory: KVParts, block_id: int, data: np.ndarray, layers: Span) -> None:
    """`data` is of all heads."""
    for part in memory.parts:
        part.data[block_id, layers[0] : layers[1]] = data[:, :, part.heads[0] : part.heads[1]]


def has(memory: KVParts, block_id: int, tag: int, layers: Span = (0, NUM_LAYERS)) -> bool:
    """Whether every part has these layers of the content."""
    wanted = content(tag, layers)
    return all(
        np.array_equal(
            part.data[block_id, layers[0] : layers[1]], wanted[:, :, part.heads[0] : part.heads[1]]
        )
        for part in memory.parts
    )


def _shape(num_blocks: int, heads: Span) -> tuple[int, ...]:
    return num_blocks, NUM_LAYERS, 2, heads[1] - heads[0], TILE_BYTES
